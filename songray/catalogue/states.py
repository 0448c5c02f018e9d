"""The states of tracks that a crawl compares, and those of one crawl, compactly."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from songray.keys import LAST_REVISION, LEFT, are_among, hash64, numbered_key
from songray.library import Row

RECENT = 100_000  # states that are held as objects, of some 500 bytes each
PART = 1_000_000  # states of a level that are merged at a time
# What a state has beside the hash of the id
REST = np.dtype([("number", "i8"), ("checksum", "i8"), ("audio_checksum", "u4"), ("revision", "u1"),
                 ("completeness", "u1")])  # fmt: skip


class TrackState(NamedTuple):
    """What a crawl compares of a track."""

    number: int  # 55 bits: the hash of its id, or the next number that was free
    revision: int
    id_hash: int
    completeness: int  # number of fields with a value
    checksum: int  # of all fields
    audio_checksum: int  # of the audio version
    left: int | None = None  # the number that the track had before, whose revisions are used up

    def rows(self, track: Row) -> list[Row]:
        """The rows of `tracks` that hold it, and that mark the number that it has left."""
        track_id = track["track_id"]
        names = ("revision", "id_hash", "completeness", "checksum", "audio_checksum")
        key = {"track_key": numbered_key(self.number, self.revision, track_id)}
        row = track | key | {name: getattr(self, name) for name in names}
        if self.left is None:
            return [row]
        key = {"track_key": numbered_key(self.left, LAST_REVISION, track_id)}
        marker = key | {"track_id": track_id, "revision": LAST_REVISION, "id_hash": self.id_hash}
        return [row, marker | {"crawl": LEFT}]


class Level(NamedTuple):
    """Some states, in files; arrays of their own are searched without a copy."""

    id_hashes: NDArray[np.int64]  # sorted
    rest: NDArray[np.void]  # of REST, in the order of the hashes
    numbers: NDArray[np.int64]  # sorted, those that its tracks have or had


class CrawlStates:
    """The states of the tracks that a crawl has described, by the hashes of their ids.

    The last ones are a dictionary; the others are a few levels in temporary files, each more than twice as
    long as the next one: 38 bytes a track, which are mapped. Memory: 500 bytes of each recent state, and one
    part of two levels that are merged.
    """

    def __init__(self) -> None:
        self._recent: dict[int, TrackState] = {}
        self._recent_numbers: set[int] = set()
        self._levels: list[Level] = []  # the newest last
        self._folder: TemporaryDirectory[str] | None = None  # once there is a level

    def get(self, track_id: str) -> TrackState | None:
        id_hash = hash64("id", track_id)
        if (state := self._recent.get(id_hash)) is not None:
            return state
        for level in reversed(self._levels):
            place = int(np.searchsorted(level.id_hashes, id_hash))
            if place < len(level.id_hashes) and level.id_hashes[place] == id_hash:
                rest = level.rest[place]
                return TrackState(**{name: int(rest[name]) for name in REST.names or ()}, id_hash=id_hash)
        return None

    def set(self, state: TrackState) -> None:
        self._recent[state.id_hash] = state._replace(left=None)
        self._recent_numbers.add(state.number)
        if len(self._recent) == RECENT:
            self._flush()

    def has_number(self, number: int) -> bool:
        """Whether a track has that number."""
        if number in self._recent_numbers:
            return True
        places = ((level.numbers, int(np.searchsorted(level.numbers, number))) for level in self._levels)
        return any(place < len(numbers) and numbers[place] == number for numbers, place in places)

    def _flush(self) -> None:
        names = REST.names or ()
        id_hashes = np.array(list(self._recent), np.int64)
        rest = np.array([tuple(getattr(s, name) for name in names) for s in self._recent.values()], REST)
        order = np.argsort(id_hashes)
        level = Level(id_hashes[order], rest[order], np.sort(rest["number"]))
        while self._levels and len(self._levels[-1].id_hashes) <= 2 * len(level.id_hashes):
            level = self._merged(self._levels.pop(), level)
        self._levels.append(level)
        self._recent, self._recent_numbers = {}, set()

    def _merged(self, older: Level, newer: Level) -> Level:
        """Both levels as one, in files; of a track that both have, the newer state counts."""
        self._folder = self._folder or TemporaryDirectory(prefix="songray-crawl-")
        paths = [Path(self._folder.name, uuid.uuid4().hex) for _ in Level._fields]
        with ExitStack() as files:
            hash_file, rest_file, number_file = (files.enter_context(path.open("wb")) for path in paths)
            for old, new in _parts(older.id_hashes, newer.id_hashes):
                is_kept = ~are_among(older.id_hashes[old], newer.id_hashes[new])
                hashes = np.concatenate([older.id_hashes[old][is_kept], newer.id_hashes[new]])
                order = np.argsort(hashes)
                hashes[order].tofile(hash_file)
                np.concatenate([older.rest[old][is_kept], newer.rest[new]])[order].tofile(rest_file)
            for old, new in _parts(older.numbers, newer.numbers):
                np.union1d(older.numbers[old], newer.numbers[new]).tofile(number_file)
        for array in (*older, *newer):
            if isinstance(array, np.memmap):
                Path(str(array.filename)).unlink()
        kinds = (np.dtype(np.int64), REST, np.dtype(np.int64))
        return Level(*(np.memmap(path, kind, "r") for path, kind in zip(paths, kinds, strict=True)))


def _parts(first: NDArray[np.int64], second: NDArray[np.int64]) -> Iterator[tuple[slice, slice]]:
    """The slices of two sorted arrays without repetitions that have the values of one interval, interval by
    interval; those of the first one have PART values."""
    bounds = first[PART::PART]
    ends = [np.append(np.searchsorted(values, bounds), len(values)).tolist() for values in (first, second)]
    starts = [[0, *end[:-1]] for end in ends]
    for a, b, c, d in zip(starts[0], ends[0], starts[1], ends[1], strict=True):
        yield slice(a, b), slice(c, d)
