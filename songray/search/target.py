"""The tracks that an index should contain, and their vectors and rows, read from the tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.key_index import KeyIndex
from songray.keys import REVISION_BITS, Interval, KeySet
from songray.library import Library, Vectors, matrix, tag_matrix
from songray.search.tags import Levels, to_levels
from songray.table import Newest

if TYPE_CHECKING:
    import ray

TARGET = np.dtype(
    [
        ("key", "i8"),  # of the embedding
        ("file", "i4"),  # its index in Target.embedding_files
        ("track_key", "i8"),  # of the row in `tracks`
        ("track_file", "i4"),  # its index in Target.track_files
        ("checksum", "i8"),  # of that row
    ]
)

Files = tuple[list[str], list[str]]  # the paths of embeddings, and of tracks


@dataclass(frozen=True)
class Target:
    """Tracks that have both an embedding and a row in `tracks`, at their newest revisions."""

    rows: NDArray[np.void]  # of TARGET, sorted by key, and so by track_key
    embedding_files: list[str]
    track_files: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Target:
        return replace(self, rows=self.rows[rows])


@dataclass(frozen=True)
class StoredTarget:
    """A target in Ray's object store."""

    rows: list[ray.ObjectRef]  # of arrays of TARGET, by ascending keys
    files: ray.ObjectRef  # of Files

    def load(self) -> Target:
        import ray

        return Target(np.concatenate(ray.get(self.rows)), *ray.get(self.files))


@dataclass(frozen=True)
class TargetRanges:
    """All tracks that an index should contain, read from the key indexes an interval of keys at a time."""

    library: Library
    run: str
    embeddings: KeyIndex
    tracks: KeyIndex

    @classmethod
    def of(cls, library: Library, run: str) -> TargetRanges:
        tables = library.table("embeddings", run), library.table("tracks")
        return cls(library, run, *(table.key_index() for table in tables))

    @property
    def files(self) -> Files:
        return self.embeddings.paths, self.tracks.paths

    @property
    def intervals(self) -> list[Interval]:
        return max(self.embeddings.intervals, self.tracks.intervals, key=len)

    def __iter__(self) -> Iterator[NDArray[np.void]]:
        """Arrays of TARGET, one for each interval, sorted by key."""
        embeddings, tracks = self.library.table("embeddings", self.run), self.library.table("tracks")
        for interval in self.intervals:
            yield _rows(
                embeddings.newest_between(self.embeddings, interval, ["track_key"]),
                tracks.newest_between(self.tracks, interval, ["track_key", "checksum", "is_gone"]),
            )


def _rows(embeddings: Newest, tracks: Newest) -> NDArray[np.void]:
    """The rows of a target in one interval of keys."""
    keys, track_keys = (newest.rows["track_key"].to_numpy() for newest in (embeddings, tracks))
    _, embedded, described = np.intersect1d(
        keys >> REVISION_BITS, track_keys >> REVISION_BITS, assume_unique=True, return_indices=True
    )
    is_gone = pa.compute.fill_null(tracks.rows["is_gone"], False).to_numpy()[described]
    embedded, described = embedded[~is_gone], described[~is_gone]
    rows = np.empty(len(embedded), TARGET)
    rows["key"], rows["file"] = keys[embedded], embeddings.file[embedded]
    rows["track_key"], rows["track_file"] = track_keys[described], tracks.file[described]
    rows["checksum"] = pa.compute.fill_null(tracks.rows["checksum"], 0).to_numpy()[described]
    return rows


def lowest_tracks(library: Library, run: str, most: int, without: KeySet | None = None) -> Target:
    """The tracks with the lowest keys, a random sample, but for some. Memory: 36 bytes each of these, and a
    range of the key indexes."""
    ranges = TargetRanges.of(library, run)
    parts, count = [np.empty(0, TARGET)], 0
    for rows in ranges:
        parts.append(rows if without is None else rows[~without.contains(rows["key"])])
        count += len(parts[-1])
        if count >= most:
            break
    return Target(np.concatenate(parts)[:most], *ranges.files)


def store_parts(
    ranges: Iterable[NDArray[np.void]], files: Files, capacity: int, first: int = 0
) -> list[StoredTarget]:
    """Tracks in Ray's object store: up to `first` in a part of their own, and the others in as few and as
    equal parts as fit; by the files of embeddings, so that each part reads few of them.

    `ranges` are arrays of TARGET, by ascending keys, which are read twice. Memory: one of them, and 16 bytes
    a file.
    """
    import ray

    counts = np.zeros(len(files[0]), np.int64)  # of the tracks of each file
    for rows in ranges:
        counts += np.bincount(rows["file"], minlength=len(counts))
    ends = np.cumsum(_sizes(int(counts.sum()), capacity, first))
    chunks: list[list[ray.ObjectRef]] = [[] for _ in ends]
    places = np.cumsum(counts) - counts  # of the next track of each file among all, by files
    for rows in ranges:
        by_file = np.argsort(rows["file"], kind="stable")
        file = rows["file"][by_file]
        place = places[file] + np.arange(len(file)) - np.searchsorted(file, file)
        places += np.bincount(file, minlength=len(counts))
        part = np.empty(len(rows), np.int64)
        part[by_file] = np.searchsorted(ends, place, side="right")
        by_part = np.argsort(part, kind="stable")
        present, start = np.unique(part[by_part], return_index=True)
        for own, chunk in zip(present.tolist(), np.split(rows[by_part], start[1:]), strict=False):
            chunks[own].append(ray.put(chunk))
    stored = ray.put(files)
    return [StoredTarget(part, stored) for part in chunks]


def _sizes(tracks: int, capacity: int, first: int) -> list[int]:
    """The numbers of tracks of the parts."""
    own = min(first, tracks)
    parts = -(-(tracks - own) // capacity)
    size, longer = divmod(tracks - own, max(1, parts))
    return [own] * (own > 0) + [size + (number < longer) for number in range(parts)]


def read_vectors(library: Library, run: str, target: Target) -> Vectors:
    """(tracks, dimension), in the order of the target. Raises MissingInput where one is missing."""
    return matrix(_embeddings(library, run, target, ["embedding"])["embedding"])


def read_tagged_vectors(library: Library, run: str, target: Target, tags: int) -> tuple[Vectors, Levels]:
    """The vectors, and the levels of so many tags, (tracks, tags), in the order of the target. Raises
    MissingInput where a track is missing."""
    rows = _embeddings(library, run, target, ["embedding", "tags"] if tags else ["embedding"])
    known = tag_matrix(rows["tags"], tags) if tags else np.empty((len(rows), 0), np.float32)
    return matrix(rows["embedding"]), to_levels(known)


def _embeddings(library: Library, run: str, target: Target, columns: Sequence[str]) -> pa.Table:
    table, keys = library.table("embeddings", run), target.rows["key"]
    return table.rows_of(keys, target.rows["file"], target.embedding_files, columns)


def have_direction(vectors: Vectors) -> NDArray[np.bool_]:
    """Whether each vector can be compared: it is finite, and not 0, in the precision of an index."""
    with np.errstate(over="ignore"):
        halves = vectors.astype(np.float16)
    lengths = np.linalg.norm(halves.astype(np.float32), axis=1)
    is_one: NDArray[np.bool_] = (lengths > 0) & np.isfinite(lengths)
    return is_one


def read_tracks(library: Library, target: Target, columns: Sequence[str]) -> pa.Table:
    """`track_key` of the embedding, `checksum`, and columns of the newest row of each track, in the order of
    the target. Raises MissingInput where a row is missing."""
    table, keys = library.table("tracks"), target.rows["track_key"]
    newest = table.rows_of(keys, target.rows["track_file"], target.track_files, columns)
    selected = newest.select(list(columns)).add_column(0, "track_key", pa.array(target.rows["key"]))
    return selected.add_column(1, "checksum", pa.array(target.rows["checksum"]))
