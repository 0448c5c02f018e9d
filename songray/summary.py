"""What a stage did, and whether too much of it failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from songray.errors import StageFailed

LEAST_JUDGED = 100  # rows by which alone a run is judged
# Classes of retryable failures that say nothing about a run: the catalogue may name a location later, and the
# quota of a service is renewed.
WAITING = ("no_location", "http_429")


@dataclass
class Summary:
    """What a stage did: rows = existing + done + failed + retryable."""

    stage: str
    rows: int = 0
    existing: int = 0
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # permanent failures, by class
    retryable: Counter[str] = field(default_factory=Counter)  # failures that the next run retries, by class
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        processed = self.done + self.failed.total() + self.retryable.total()
        parts = [f"{self.existing} finished before", f"{self.done} finished now"]
        parts.append(f"{self.failed.total()} failed{_by_class(self.failed)}")
        if self.retryable:
            parts.append(f"{self.retryable.total()} to be retried{_by_class(self.retryable)}")
        rate = f", {processed / self.seconds:.1f}/s" if processed and self.seconds else ""
        text = f"{self.stage}: {self.rows} tracks = {' + '.join(parts)} ({self.seconds:.1f} s{rate})"
        return "\n  ".join([text, *self.remarks])

    def check(self, max_failed_share: float) -> None:
        """Raise StageFailed where too large a share failed: see `failed_share`."""
        waiting = sum(self.retryable[kind] for kind in WAITING)
        failures = self.failed.total() + self.retryable.total() - waiting
        processed, share = failed_share(failures, self.done + failures, self.existing)
        if share > max_failed_share:
            raise StageFailed(
                f"{failures} of {processed} tracks failed, more than --max-failed-share {max_failed_share:g} "
                f"allows:\n{self}"
            )


def failed_share(failures: int, processed: int, existing: int) -> tuple[int, float]:
    """The rows that failures are counted among, and their share. A run that processes few rows is judged
    with those that were finished before: one new file that fails is not all that there is."""
    judged = processed if processed >= LEAST_JUDGED else processed + existing
    return judged, failures / judged if judged else 0.0


def _by_class(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{name} {count}' for name, count in counts.most_common())})" if counts else ""
