"""Which part of a recording is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from songray.errors import InvalidOption

MIN_SECONDS = 0.5  # shorter recordings are not used
MIN_GAP = 0.5  # seconds: pieces that are closer than that are one piece


@dataclass(frozen=True)
class Excerpt:
    """The part of a recording that is decoded: so many seconds of its middle or its start, or, for spread:n,
    n pieces of equal length that are evenly spread over it, joined.

    Of whole songs, 30 s in 5 pieces find other parts of the same recording more often than 30 s of the
    middle, at the same cost: 0.83 against 0.74 of the queries of tests/benchmarks/bench_excerpts.py.
    """

    seconds: float = 30.0
    at: str = "spread:5"

    def __post_init__(self) -> None:
        if not self.seconds >= MIN_SECONDS:
            raise InvalidOption(f"excerpt of {self.seconds} s: it must be at least {MIN_SECONDS} s")
        kind, _, count = self.at.partition(":")
        if self.at not in ("middle", "start") and not (kind == "spread" and count.isdecimal() and int(count)):
            raise InvalidOption(f"excerpt at {self.at!r}: choose middle, start or spread:n, n from 1")

    def pieces(self, total_seconds: float) -> list[tuple[float, float]]:
        """Start and length, in seconds, of each piece of a recording of so many seconds."""
        length = min(self.seconds, total_seconds)
        if self.at == "start":
            return [(0.0, length)]
        count = int(self.at.partition(":")[2] or 1)
        if (gap := (total_seconds - length) / (count + 1)) < MIN_GAP:
            count, gap = 1, (total_seconds - length) / 2
        return [(gap * (n + 1) + length / count * n, length / count) for n in range(count)]
