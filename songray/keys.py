"""The key of a track at one revision, and hashes that are the same on every machine and in every run.

A key is an int64: the upper 55 bits are the track's number, a hash of its id (or, where another id has that
number, the next free one), the lower 8 bits its revision. So the newest revision of a track has its largest
key.

A track that has had all revisions goes on under another number, from revision 0. A row of `tracks` with the
old number, the last revision and LEFT as its `crawl` says that no track has the old number any more: it is
newer than all rows of that number, and the number is never given again, since rows of other tables have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from songray.errors import Conflict

Keys = NDArray[np.int64]
Interval = tuple[int, int]  # of keys, without the second one
Only = Callable[[Interval], Keys]  # sorted keys, among them all of an interval that count

REVISION_BITS = 8
KEY_BITS = 63
EVERY_KEY: Interval = (0, 1 << KEY_BITS)
NUMBERS = 1 << 55  # that a track may have
LAST_REVISION = (1 << REVISION_BITS) - 1
LEFT = (1 << 63) - 1
MAX_PROBES = 256  # an id has one of so many numbers, from its hash on
COMPLETENESS_MASK = np.int64(31)


@dataclass(frozen=True)
class KeySet:
    """The keys of some tracks at every revision, and some keys of others."""

    numbers: Keys
    keys: Keys = field(default_factory=lambda: np.empty(0, np.int64))

    def every_number(self) -> Keys:
        """The numbers of all of them, for what does not know revisions."""
        return np.union1d(self.numbers, self.keys >> REVISION_BITS)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        return np.isin(keys >> REVISION_BITS, self.numbers) | np.isin(keys, self.keys)


def hash64(*parts: str) -> int:
    """A signed 64-bit hash, the same on every machine and in every run."""
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def sample_rank(*parts: str) -> float:
    """A pseudo-random number in [0, 1) of the parts, the same on every machine and in every run."""
    return (hash64(*parts) >> 11) / 2**53 % 1.0


def track_number(track_id: str) -> int:
    """The number of a track by its id, 55 bits; the crawl takes the next free one where another id has it."""
    return hash64(track_id) & NUMBERS - 1


def track_key(track_id: str, revision: int) -> int:
    """The key of a track at one revision, never negative, where no other id has the same number."""
    return numbered_key(track_number(track_id), revision, track_id)


def numbered_key(number: int, revision: int, track_id: str) -> int:
    """The key of a track with this number at one revision. Raises Conflict beyond the last revision."""
    if not 0 <= revision <= LAST_REVISION:
        raise Conflict(f"{track_id} has had {revision} revisions, and {LAST_REVISION + 1} are the most")
    return number << REVISION_BITS | revision


def are_among(keys: Keys, others: Keys) -> NDArray[np.bool_]:
    """For each key, whether it is one of the others, which are sorted."""
    if not others.size:
        return np.zeros(keys.size, bool)
    position = np.minimum(np.searchsorted(others, keys), others.size - 1)
    among: NDArray[np.bool_] = others[position] == keys
    return among


def last_of_equal(values: Keys) -> NDArray[np.bool_]:
    """For each of some sorted values, whether it is the last of those that equal it."""
    return np.append(values[1:] != values[:-1], True)[: values.size]


def clear_completeness(checksums: Keys) -> Keys:
    """Checksums of tracks without the 5 bits in which earlier versions kept the completeness."""
    cleared: Keys = checksums & ~COMPLETENESS_MASK
    return cleared
