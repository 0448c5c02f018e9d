"""Versions of an index in storage: list, read, publish, mark tracks deleted, prune.

indexes/<run>/shards/<shard>/           FILES of a shard, which versions share
indexes/<run>/<version>/reference.npy   the reference, the same in all versions until one is built anew
indexes/<run>/<version>/manifest.json   the fields of Version; written last: no version is without
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
from numpy.typing import NDArray

from songray.errors import CorruptData
from songray.keys import REVISION_BITS, Keys, clear_completeness
from songray.library import Library
from songray.search.reference import Reference
from songray.storage import read_json, write_json

GRAPH, VECTORS, TRACKS, TEXT = FILES = ("graph.hnsw", "vectors.npy", "tracks.arrow", "names.sqlite")
LIVE = np.dtype([("key", "i8"), ("checksum", "i8"), ("label", "i8")])


@dataclass(frozen=True)
class ShardEntry:
    """A shard as one version contains it."""

    id: str
    tracks: int  # including deleted ones
    deleted: list[int]  # labels
    ef: int  # the smallest ef that reached the recall
    recall: float
    checksums: dict[str, str]  # SHA-256 of each file


@dataclass(frozen=True)
class Version:
    """One version of a run's index: the fields of its manifest.json."""

    run: str
    version: str  # "000001"
    tracks: int  # live
    dimension: int
    parameters: dict[str, int]  # hnswlib's M and ef_construction
    ef: int
    recall: float  # recall@10 at that ef, against exact search on a sample
    recall_target: float
    shards: list[ShardEntry]
    made_with: dict[str, str]  # versions of the software that built it


def newest_version(library: Library, run: str) -> Version | None:
    """The newest finished version of a run's index, or None. Raises CorruptData."""
    return next(iter(versions(library, run)), None)


def versions(library: Library, run: str) -> list[Version]:
    """The finished versions of a run's index, newest first. Raises CorruptData on a damaged manifest."""
    stored = (read_version(library, run, name) for name in reversed(version_names(library, run)))
    return [version for version in stored if version]


def version_names(library: Library, run: str) -> list[str]:
    """Names of the versions of a run's index, unfinished ones included, oldest first."""
    return [name for name in library.folders("indexes", run) if name != "shards"]


def read_version(library: Library, run: str, name: str) -> Version | None:
    """A version of a run's index, or None where it is not finished. Raises CorruptData."""
    path = library.path("indexes", run, name, "manifest.json")
    try:
        content = read_json(library.filesystem, path)
        if content is None:
            return None
        entries = [ShardEntry(**entry) for entry in content.pop("shards")]
        return Version(**content, shards=entries)
    except (CorruptData, TypeError, KeyError, AttributeError) as error:
        raise CorruptData(f"{path} is damaged: delete its folder and run `songray index` again") from error


def next_version(before: Version | None) -> str:
    return f"{int(before.version) + 1 if before else 1:06d}"


def publish(library: Library, version: Version, reference: Reference) -> Version:
    """Write a version whose shards are in storage already, its manifest last.

    Returns it with the totals of its shards: the live tracks, the largest ef, the mean recall.
    """
    entries = version.shards
    live = [entry.tracks - len(entry.deleted) for entry in entries]
    finished = replace(
        version,
        tracks=sum(live),
        ef=max((entry.ef for entry in entries), default=version.ef),
        recall=float(np.average([entry.recall for entry in entries], weights=live)) if entries else 1.0,
    )
    folder = library.path("indexes", version.run, version.version)
    library.filesystem.create_dir(folder, recursive=True)
    content = np.empty(len(reference.tracks), [("track", "i8"), ("vector", "f4", version.dimension)])
    content["track"], content["vector"] = reference.tracks, reference.vectors
    with library.filesystem.open_output_stream(f"{folder}/reference.npy") as stream:
        np.save(stream, content)
    write_json(library.filesystem, f"{folder}/manifest.json", asdict(finished))
    return finished


def read_reference(library: Library, version: Version) -> Reference:
    path = library.path("indexes", version.run, version.version, "reference.npy")
    with library.filesystem.open_input_file(path) as stream:
        content = np.load(stream)
    return Reference(content["track"].copy(), content["vector"].copy())


def delete(library: Library, run: str, tracks: Keys) -> int:
    """Mark tracks, given by their keys without revision, as deleted in a new version of a run's index.

    Returns their number. Their rows remain in the shards' files until the index is built anew (`songray
    compact`) and earlier versions are pruned.
    """
    before = newest_version(library, run)
    if before is None:
        return 0
    live = [live_tracks(library, run, entry) for entry in before.shards]
    labels = [part["label"][np.isin(part["key"] >> REVISION_BITS, tracks)] for part in live]
    if not any(map(len, labels)):
        return 0
    version = replace(before, version=next_version(before), shards=mark_deleted(before.shards, labels))
    publish(library, version, read_reference(library, before))
    return sum(map(len, labels))


def mark_deleted(entries: Sequence[ShardEntry], labels: Sequence[NDArray[np.int64]]) -> list[ShardEntry]:
    """The entries with further labels marked as deleted; those without a live track are left out."""
    marked = [
        replace(entry, deleted=sorted({*entry.deleted, *deleted.tolist()}))
        for entry, deleted in zip(entries, labels, strict=True)
    ]
    return [entry for entry in marked if len(entry.deleted) < entry.tracks]


def live_tracks(library: Library, run: str, entry: ShardEntry) -> NDArray[np.void]:
    """Keys, checksums and labels of the live tracks of a shard, an array of LIVE."""
    path = library.path("indexes", run, "shards", entry.id, TRACKS)
    with library.filesystem.open_input_file(path) as file:
        schema = pa.ipc.open_file(file).schema
        fields = [schema.get_field_index(name) for name in ("track_key", "checksum")]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        rows = pa.ipc.open_file(file, options=options).read_all()
    live = np.empty(rows.num_rows, LIVE)
    live["key"] = rows["track_key"].to_numpy()
    live["checksum"] = clear_completeness(rows["checksum"].to_numpy())
    live["label"] = np.arange(rows.num_rows)
    return np.delete(live, entry.deleted)


def prune(library: Library, run: str, keep: int) -> None:
    """Delete all but the newest finished versions, unfinished ones, and shards that no version refers to."""
    kept = versions(library, run)[:keep]
    names = {version.version for version in kept}
    shards = {entry.id for version in kept for entry in version.shards}
    for name in version_names(library, run):
        if name not in names:
            library.filesystem.delete_dir(library.path("indexes", run, name))
    for shard in library.folders("indexes", run, "shards"):
        if shard not in shards:
            library.filesystem.delete_dir(library.path("indexes", run, "shards", shard))


@contextmanager
def local_copy(library: Library, run: str, entry: ShardEntry) -> Iterator[Path]:
    """A local folder with a shard's files, verified: that of the library where its filesystem is local, else
    a copy that is deleted at the end. Raises CorruptData where a file is missing or its checksum differs."""
    source = library.path("indexes", run, "shards", entry.id)
    is_local = isinstance(library.filesystem, pa.fs.LocalFileSystem)
    with tempfile.TemporaryDirectory(prefix="songray-index-") as copy:
        folder = Path(source if is_local else copy)
        try:
            if not is_local:
                pa.fs.copy_files(source, copy, library.filesystem, pa.fs.LocalFileSystem())
            damaged = [name for name, sha256 in entry.checksums.items() if checksum(folder / name) != sha256]
        except FileNotFoundError as error:
            raise CorruptData(f"{source} has a file missing ({error}): run `songray compact`") from error
        if damaged:
            raise CorruptData(f"{source}/{damaged[0]} is damaged (checksum): run `songray compact`")
        yield folder


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
