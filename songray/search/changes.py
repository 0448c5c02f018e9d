"""What is missing in a version of an index and what is obsolete in it, an interval of keys at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from songray.library import Library
from songray.search.bitmap import Labels
from songray.search.target import TARGET, Files, TargetRanges
from songray.search.version import LIVE, Version, live_tracks


@dataclass(frozen=True)
class StoredRanges:
    """Arrays of one type in temporary files, one for each interval of keys."""

    folder: Path
    name: str  # before the number in a file's name
    dtype: np.dtype[np.void]
    count: int  # intervals

    def append(self, number: int, rows: NDArray[np.void]) -> None:
        with self._path(number).open("ab") as file:
            rows.tofile(file)

    def read(self, number: int) -> NDArray[np.void]:
        return np.fromfile(self._path(number), self.dtype)

    def __iter__(self) -> Iterator[NDArray[np.void]]:
        return map(self.read, range(self.count))

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number}"


@dataclass(frozen=True)
class Changes:
    tracks: int  # that the version should contain
    missing: int  # of these
    missing_tracks: StoredRanges  # of TARGET
    files: Files  # that these refer to
    obsolete: list[Labels]  # of the live tracks of each shard that it should not contain


@contextmanager
def compare(library: Library, version: Version) -> Iterator[Changes]:
    """Compare the live tracks of a version with what it should contain, by key and checksum.

    Memory: a range of the key indexes, and a byte a track of the version. 24 bytes of each live track and 36
    of each that is missing lie in temporary files, which the context deletes.
    """
    ranges = TargetRanges.of(library, version.run)
    count = len(ranges.intervals)
    with tempfile.TemporaryDirectory(prefix="songray-index-") as folder:
        indexed = StoredRanges(Path(folder), "live", LIVE, count)
        missing = StoredRanges(Path(folder), "missing", TARGET, count)
        offsets = np.cumsum([0, *(entry.tracks for entry in version.shards)])
        _store_live(library, version, ranges, offsets, indexed)
        tracks, count_missing, is_obsolete = 0, 0, np.zeros(offsets[-1], bool)
        for number, rows in enumerate(ranges):
            live = indexed.read(number)
            position = np.searchsorted(rows["key"], live["key"])
            is_current = position < len(rows)
            found, own = rows[position[is_current]], live[is_current]
            is_current[is_current] = (found["key"] == own["key"]) & (found["checksum"] == own["checksum"])
            is_obsolete[live["label"][~is_current]] = True
            is_missing = np.ones(len(rows), bool)
            is_missing[position[is_current]] = False
            missing.append(number, rows[is_missing])
            tracks, count_missing = tracks + len(rows), count_missing + int(is_missing.sum())
        obsolete = [np.flatnonzero(part) for part in np.split(is_obsolete, offsets[1:-1])]
        yield Changes(tracks, count_missing, missing, ranges.files, obsolete)


def _store_live(
    library: Library, version: Version, ranges: TargetRanges, offsets: NDArray[np.int64], stored: StoredRanges
) -> None:
    """Store the live tracks of a version by intervals; a label is their place among those of all shards."""
    bounds = [low for low, _ in ranges.intervals[1:]]
    for entry, offset in zip(version.shards, offsets, strict=False):
        live = live_tracks(library, version.run, entry)
        live["label"] += offset
        live = live[np.argsort(live["key"])]
        for number, part in enumerate(np.split(live, np.searchsorted(live["key"], bounds))):
            stored.append(number, part)
