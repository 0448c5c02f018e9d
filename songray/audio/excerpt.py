"""Which part of a recording is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from songray.errors import InvalidOption

MIN_SECONDS = 0.5  # shorter recordings are not used


@dataclass(frozen=True)
class Excerpt:
    """The part of a recording that is decoded: so many seconds of its middle or its start, or, for spread:n,
    n pieces of equal length that are evenly spread over it, joined."""

    seconds: float = 30.0
    at: str = "middle"

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
        gap = (total_seconds - length) / (count + 1)
        return [(gap * (n + 1) + length / count * n, length / count) for n in range(count)]
