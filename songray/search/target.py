"""The tracks that an index should contain, and their vectors and rows, read from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.keys import REVISION_BITS, Keys
from songray.library import Library, Vectors, matrix, tag_matrix
from songray.search.tags import Levels, to_levels
from songray.table import Newest

TARGET = np.dtype(
    [
        ("key", "i8"),  # of the embedding
        ("file", "i4"),  # its index in Target.embedding_files
        ("track_key", "i8"),  # of the row in `tracks`
        ("track_file", "i4"),  # its index in Target.track_files
        ("checksum", "i8"),  # of that row
    ]
)


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

    def split(self, capacity: int) -> list[Target]:
        """As few and as equal parts as fit; by files, so that each part reads few of them."""
        if not len(self):
            return []
        by_file = np.argsort(self.rows["file"], kind="stable")
        return [self.select(np.sort(part)) for part in np.array_split(by_file, -(-len(self) // capacity))]


def find_target(library: Library, run: str) -> Target:
    """Memory: 36 bytes a track, and a range of the key indexes."""
    embeddings, tracks = library.table("embeddings", run), library.table("tracks")
    embedded, described = embeddings.key_index(), tracks.key_index()
    intervals = max(embedded.intervals, described.intervals, key=len)
    parts = [
        _rows(
            embeddings.newest_between(embedded, interval, ["track_key"]),
            tracks.newest_between(described, interval, ["track_key", "checksum", "is_gone"]),
        )
        for interval in intervals
    ]
    return Target(np.concatenate(parts), embedded.paths, described.paths)


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


def contains(tracks: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.bool_]:
    """For each of the others, whether its key is among the tracks, with the same checksum."""
    if not len(tracks):
        return np.zeros(len(others), bool)
    order = np.argsort(tracks["key"])
    position = np.minimum(np.searchsorted(tracks["key"], others["key"], sorter=order), len(tracks) - 1)
    nearest = tracks[order[position]]
    same: NDArray[np.bool_] = (nearest["key"] == others["key"]) & (nearest["checksum"] == others["checksum"])
    return same


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


def keys_without_direction(library: Library, run: str, target: Target) -> Keys:
    """Worker: the keys of embeddings that no search can compare, since they are not finite, or 0, in the
    precision of an index."""
    with np.errstate(over="ignore"):
        halves = read_vectors(library, run, target).astype(np.float16)
    lengths = np.linalg.norm(halves.astype(np.float32), axis=1)
    keys: Keys = target.rows["key"][~((lengths > 0) & np.isfinite(lengths))]
    return keys


def read_tracks(library: Library, target: Target, columns: Sequence[str]) -> pa.Table:
    """`track_key` of the embedding, `checksum`, and columns of the newest row of each track, in the order of
    the target. Raises MissingInput where a row is missing."""
    table, keys = library.table("tracks"), target.rows["track_key"]
    newest = table.rows_of(keys, target.rows["track_file"], target.track_files, columns)
    selected = newest.select(list(columns)).add_column(0, "track_key", pa.array(target.rows["key"]))
    return selected.add_column(1, "checksum", pa.array(target.rows["checksum"]))
