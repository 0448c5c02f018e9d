"""Versions of an index in storage: list, read, publish, mark tracks deleted, prune.

Whoever publishes or prunes holds the lease "indexes/<run>".

indexes/<run>/shards/<shard>/           files of a shard, which versions share
indexes/<run>/<version>/reference.npy   the reference, the same in all versions until one is built anew
indexes/<run>/<version>/manifest.json   the fields of Version; written last: no version is without
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
from numpy.typing import NDArray

from songray.errors import Conflict, CorruptData
from songray.keys import KeySet, clear_completeness
from songray.leases import Lease
from songray.library import Library, Row
from songray.search.bitmap import Labels, pack, unpack
from songray.search.reference import Reference
from songray.storage import create, list_infos, read_json, storage_errors

VECTORS, TRACKS, TEXT = "vectors.npy", "tracks.arrow", "names.sqlite"  # beside the graph: see graphs.py
Bits = Literal[8, 32]
LIVE = np.dtype([("key", "i8"), ("checksum", "i8"), ("label", "i8")])
SPARED_SECONDS = 3600.0  # since a shard was written, in which no process that lost its lease deletes it


@dataclass(frozen=True)
class ShardEntry:
    """A shard as one version contains it."""

    id: str
    tracks: int  # including deleted ones
    deleted: str  # a bitmap of labels: see songray/search/bitmap.py
    ef: int  # the smallest ef that reached the recall
    recall: float
    checksums: dict[str, str]  # SHA-256 of each file
    hosts: list[str] | None = None  # of the audio of its tracks: see rows.audio_hosts

    @property
    def deleted_labels(self) -> Labels:
        return unpack(self.deleted)


@dataclass(frozen=True)
class Version:
    """One version of a run's index: the fields of its manifest.json."""

    run: str
    version: str  # "000001"
    tracks: int  # live
    dimension: int
    parameters: dict[str, int]  # HNSW's M and ef_construction
    ef: int
    recall: float  # recall@10 at that ef, against exact search on a sample
    recall_target: float
    shards: list[ShardEntry]
    made_with: dict[str, str]  # versions of the software that built it
    tags: dict[str, list[float]] = field(default_factory=dict)  # see songray/search/tags.py
    bits: Bits = 32  # a number of the vectors in graphs
    map: str = ""  # the id of the map whose positions its tracks have; "": the principal components
    map_facts: dict[str, str | float] = field(default_factory=dict)  # see StoredMap.facts


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
        entries = [_entry(entry) for entry in content.pop("shards")]
        return Version(**content, shards=entries)
    except (CorruptData, TypeError, KeyError, AttributeError, ValueError) as error:
        raise CorruptData(f"{path} is damaged: delete its folder and run `songray index` again") from error


def _entry(fields: Row) -> ShardEntry:
    """A shard of a manifest; those of earlier versions have a list of labels."""
    if isinstance(fields["deleted"], list):
        fields = fields | {"deleted": pack(np.array(fields["deleted"], np.int64))}
    unpack(fields["deleted"])
    return ShardEntry(**fields)


def stored_bytes(library: Library, version: Version) -> int:
    """The size of the files of a version's shards, which a process maps or holds in memory."""
    folders = [library.path("indexes", version.run, "shards", entry.id) for entry in version.shards]
    return sum(info.size or 0 for folder in folders for info in list_infos(library.filesystem, folder))


def merge_hosts(parts: Sequence[list[str] | None]) -> list[str] | None:
    """All hosts; None where those of a part are not known."""
    if any(part is None for part in parts):
        return None
    return sorted({host for part in parts for host in part or []})


def next_version(before: Version | None) -> str:
    return f"{int(before.version) + 1 if before else 1:06d}"


def publish(library: Library, version: Version, reference: Reference, lease: Lease) -> Version:
    """Write a version whose shards are in storage already, its manifest last.

    Returns it with the totals of its shards: the live tracks, the largest ef, the mean recall. Raises
    Conflict where another process holds the lease by now, or has written a version of that name.
    """
    entries = version.shards
    live = [entry.tracks - entry.deleted_labels.size for entry in entries]
    finished = replace(
        version,
        tracks=sum(live),
        ef=max((entry.ef for entry in entries), default=version.ef),
        recall=float(np.average([entry.recall for entry in entries], weights=live)) if entries else 1.0,
    )
    folder = library.path("indexes", version.run, version.version)
    manifest = json.dumps(asdict(finished), indent=2).encode()
    with storage_errors(folder):
        library.filesystem.create_dir(folder, recursive=True)
    for name, file in (("reference.npy", reference.to_bytes()), ("manifest.json", manifest)):
        lease.check()
        if not create(library.filesystem, f"{folder}/{name}", file):
            raise Conflict(f"{folder}/{name} was written by another process: run `songray index` again")
    return finished


def read_reference(library: Library, version: Version) -> Reference:
    path = library.path("indexes", version.run, version.version, "reference.npy")
    with library.filesystem.open_input_file(path) as stream:
        return Reference.from_array(np.load(stream))


def delete(library: Library, run: str, tracks: KeySet, lease: Lease) -> int:
    """Mark tracks as deleted in a new version of a run's index. Returns their number. Their rows remain in
    the files of shards: songray/search/erase.py rebuilds these."""
    before = newest_version(library, run)
    if before is None:
        return 0
    labels = []
    for entry in before.shards:
        live = live_tracks(library, run, entry)
        labels.append(live["label"][tracks.contains(live["key"])])
    if not any(map(len, labels)):
        return 0
    version = replace(before, version=next_version(before), shards=mark_deleted(before.shards, labels))
    publish(library, version, read_reference(library, before), lease)
    return sum(map(len, labels))


def mark_deleted(entries: Sequence[ShardEntry], labels: Sequence[NDArray[np.int64]]) -> list[ShardEntry]:
    """The entries with further labels marked as deleted; those without a live track are left out."""
    marked = [
        replace(entry, deleted=pack(np.union1d(entry.deleted_labels, deleted)))
        for entry, deleted in zip(entries, labels, strict=True)
    ]
    return [entry for entry in marked if entry.deleted_labels.size < entry.tracks]


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
    return np.delete(live, entry.deleted_labels)


def prune(
    library: Library, run: str, keep: int, lease: Lease, spared_seconds: float = SPARED_SECONDS
) -> None:
    """Delete all but the newest finished versions, unfinished ones, and shards that no version refers to.

    A young shard is spared unless one of the versions that are deleted now refers to it: where this process
    has lost its lease without knowing, another may be building the shard. Raises Conflict where it knows.
    """
    names = version_names(library, run)
    stored = [version for name in reversed(names) if (version := read_version(library, run, name))]
    needed, obsolete = (
        {entry.id for version in part for entry in version.shards} for part in (stored[:keep], stored[keep:])
    )
    unneeded = [
        shard
        for shard in library.folders("indexes", run, "shards")
        if shard not in needed
        and (shard in obsolete or seconds_since_change(library, run, shard) >= spared_seconds)
    ]
    lease.check()
    for name in set(names) - {version.version for version in stored[:keep]}:
        _delete_folder(library, library.path("indexes", run, name))
    for shard in unneeded:
        _delete_folder(library, library.path("indexes", run, "shards", shard))


def seconds_since_change(library: Library, run: str, shard: str) -> float:
    """The seconds since a file of a shard was written."""
    folder = library.path("indexes", run, "shards", shard)
    with storage_errors(folder):
        files = library.filesystem.get_file_info(pa.fs.FileSelector(folder, allow_not_found=True))
        infos = [*files, library.filesystem.get_file_info(folder)]
    return time.time() - max((info.mtime_ns or 0) for info in infos) / 1e9


def _delete_folder(library: Library, path: str) -> None:
    with storage_errors(path), suppress(FileNotFoundError):
        library.filesystem.delete_dir(path)


def shard_name(version: Version, number: int) -> str:
    """A name that no other process gives, should it build the same version."""
    return f"{version.version}-{number:04d}-{uuid.uuid4().hex[:8]}"


def store_shard(library: Library, run: str, name: str, folder: Path) -> dict[str, str]:
    """Copy the files of a shard into the library. Returns their checksums."""
    destination = library.path("indexes", run, "shards", name)
    with storage_errors(destination):
        library.filesystem.create_dir(destination, recursive=True)
        pa.fs.copy_files(str(folder), destination, pa.fs.LocalFileSystem(), library.filesystem)
    return {file.name: checksum(file) for file in sorted(folder.iterdir())}


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
