"""The tracks that an index should contain, and their vectors and rows, read from the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.cluster import connect
from songray.key_index import KeyIndex
from songray.keys import REVISION_BITS, Keys, KeySet
from songray.library import Library, Vectors, matrix, tag_matrix
from songray.search.bitmap import Labels
from songray.search.tags import Levels, to_levels
from songray.search.version import ShardEntry, Version, live_tracks
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
CHECKED_TRACKS = 250_000  # whose vectors one task reads to see whether they have a direction
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, so that different checksums stay different

Signatures = NDArray[np.uint64]


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

    def store(self) -> StoredTarget:
        import ray

        return StoredTarget([ray.put(self.rows)], ray.put((self.embedding_files, self.track_files)))


@dataclass(frozen=True)
class Changes:
    """What an index has and should not have, and the reverse."""

    tracks: int  # that it should contain
    missing: Target
    obsolete: Signatures  # sorted, of tracks that it contains


@dataclass(frozen=True)
class StoredTarget:
    """A target in Ray's object store."""

    rows: list[ray.ObjectRef]  # of arrays of TARGET, by ascending keys
    files: ray.ObjectRef  # of the paths of embeddings and of tracks

    def load(self) -> Target:
        import ray

        return Target(np.concatenate(ray.get(self.rows)), *ray.get(self.files))


def lowest_tracks(library: Library, run: str, most: int, without: KeySet | None = None) -> Target:
    """The tracks with the lowest keys, a random sample, but for some. Memory: 36 bytes each of these, and a
    range of the key indexes."""
    embeddings, tracks = _key_indexes(library, run)
    parts, count = [np.empty(0, TARGET)], 0
    for rows in _parts(library, run, embeddings, tracks):
        parts.append(rows if without is None else rows[~without.contains(rows["key"])])
        count += len(parts[-1])
        if count >= most:
            break
    return Target(np.concatenate(parts)[:most], embeddings.paths, tracks.paths)


def store_parts(library: Library, run: str, capacity: int) -> list[StoredTarget]:
    """All tracks, in Ray's object store, in as few and as equal parts as fit: by the files of embeddings, so
    that each part reads few of them. Memory: a range of the key indexes, and 16 bytes a file."""
    import ray

    embeddings, tracks = _key_indexes(library, run)
    counts = np.zeros(len(embeddings.paths), np.int64)  # of the tracks of each file
    for rows in _parts(library, run, embeddings, tracks):
        counts += np.bincount(rows["file"], minlength=len(counts))
    number = -(-int(counts.sum()) // capacity)
    size, longer = divmod(int(counts.sum()), number)
    ends = np.cumsum(size + (np.arange(number) < longer))  # of the parts
    chunks: list[list[ray.ObjectRef]] = [[] for _ in ends]
    places = np.cumsum(counts) - counts  # of the next track of each file among all, by files
    for rows in _parts(library, run, embeddings, tracks):
        by_file = np.argsort(rows["file"], kind="stable")
        file = rows["file"][by_file]
        place = places[file] + np.arange(len(file)) - np.searchsorted(file, file)
        places += np.bincount(file, minlength=len(counts))
        part = np.empty(len(rows), np.int64)
        part[by_file] = np.searchsorted(ends, place, side="right")
        by_part = np.argsort(part, kind="stable")
        present, first = np.unique(part[by_part], return_index=True)
        for own, chunk in zip(present.tolist(), np.split(rows[by_part], first[1:]), strict=True):
            chunks[own].append(ray.put(chunk))
    files = ray.put((embeddings.paths, tracks.paths))
    return [StoredTarget(part, files) for part in chunks]


def find_changes(library: Library, run: str, indexed: Signatures) -> Changes:
    """Compare what an index contains, by sorted signatures, with what it should. Memory: 9 bytes a track of
    the index, 36 of each that is missing, and a range of the key indexes."""
    embeddings, tracks = _key_indexes(library, run)
    count, missing, is_current = 0, [np.empty(0, TARGET)], np.zeros(len(indexed), bool)
    for rows in _parts(library, run, embeddings, tracks):
        needed = signatures(rows)
        position = np.searchsorted(indexed, needed)
        is_indexed = np.zeros(len(rows), bool)
        within = position < len(indexed)
        is_indexed[within] = indexed[position[within]] == needed[within]
        is_current[position[is_indexed]] = True
        missing.append(rows[~is_indexed])
        count += len(rows)
    repeats = np.flatnonzero(indexed[1:] == indexed[:-1]) + 1  # searchsorted finds the first of equal ones
    is_current[repeats] = is_current[repeats - 1]
    target = Target(np.concatenate(missing), embeddings.paths, tracks.paths)
    return Changes(count, target, indexed[~is_current])


def indexed_signatures(library: Library, version: Version) -> Signatures:
    """The signatures of the live tracks of a version, sorted."""
    sizes = [entry.tracks - entry.deleted_labels.size for entry in version.shards]
    every, ends = np.empty(sum(sizes), np.uint64), np.cumsum(sizes)
    for entry, size, end in zip(version.shards, sizes, ends, strict=True):
        every[end - size : end] = signatures(live_tracks(library, version.run, entry))
    every.sort()
    return every


def obsolete_labels(library: Library, run: str, entry: ShardEntry, obsolete: Signatures) -> Labels:
    """The labels of the live tracks of a shard with some signatures."""
    if not obsolete.size:
        return np.empty(0, np.int64)
    live = live_tracks(library, run, entry)
    labels: Labels = live["label"][np.isin(signatures(live), obsolete)]
    return labels


def signatures(rows: NDArray[np.void]) -> Signatures:
    """A number for the key and the checksum of each row. That one of 100 million new tracks shares it with
    one of 100 million others has a probability of 0.0005."""
    checksums = rows["checksum"].astype(np.uint64)
    signed: Signatures = rows["key"].astype(np.uint64) + checksums * SPREAD
    return signed


def _key_indexes(library: Library, run: str) -> tuple[KeyIndex, KeyIndex]:
    return library.table("embeddings", run).key_index(), library.table("tracks").key_index()


def _parts(library: Library, run: str, embedded: KeyIndex, described: KeyIndex) -> Iterator[NDArray[np.void]]:
    """The rows of a target, an interval of keys at a time."""
    embeddings, tracks = library.table("embeddings", run), library.table("tracks")
    for interval in max(embedded.intervals, described.intervals, key=len):
        yield _rows(
            embeddings.newest_between(embedded, interval, ["track_key"]),
            tracks.newest_between(described, interval, ["track_key", "checksum", "is_gone"]),
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


def comparable(library: Library, run: str, target: Target) -> Target:
    """The tracks whose vectors have a direction: finite ones that are not 0."""
    if not len(target):
        return target
    connect()
    import ray

    task = ray.remote(keys_without_direction)
    keys = ray.get([task.remote(library, run, part) for part in target.split(CHECKED_TRACKS)])
    return target.select(~np.isin(target.rows["key"], np.concatenate(keys)))


def keys_without_direction(library: Library, run: str, target: Target) -> Keys:
    """Worker: the keys of embeddings that no search can compare."""
    keys: Keys = target.rows["key"][~have_direction(read_vectors(library, run, target))]
    return keys


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
