"""Versions of a run's index: what each is made of, and one of them in memory.

indexes/<run>/shards/<shard>/…          files of a shard (songray/shards.py), shared by versions
indexes/<run>/<version>/reference.npy   the tracks to which all others are compared
indexes/<run>/<version>/manifest.json   shards, deleted labels, recall, checksums; written last
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from songray.library import REVISION_BITS, Keys, Library, Vectors, read_json, write_json
from songray.search.shard import (
    EVERYTHING,
    TRACKS,
    Candidates,
    Filters,
    Place,
    Points,
    Reference,
    Row,
    Shard,
    ranked,
)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as a version has it."""

    id: str
    tracks: int  # deleted ones too
    deleted: list[int]  # labels
    ef: int  # the least that reached the recall
    recall: float
    checksums: dict[str, str]  # SHA-256 a file


@dataclass(frozen=True)
class Manifest:
    """What a version of an index is made of."""

    run: str
    version: str
    tracks: int  # live
    dimension: int
    parameters: dict[str, int]  # of hnswlib: M, ef_construction
    ef: int
    recall: float  # of the 10 nearest, at that ef, against exact search on a sample
    recall_target: float
    shards: list[ShardEntry]
    made_with: dict[str, str]


def newest_manifest(library: Library, run: str) -> Manifest | None:
    """Of the newest finished version of a run's index, if there is one."""
    return next(iter(manifests(library, run)), None)


def manifests(library: Library, run: str) -> list[Manifest]:
    """Of the finished versions of a run's index, newest first. Raises ValueError where one is damaged."""
    found = []
    for version in reversed(versions(library, run)):
        path = library.path("indexes", run, version, "manifest.json")
        try:
            content = read_json(library.filesystem, path)
            if content is not None:
                entries = [ShardEntry(**entry) for entry in content.pop("shards")]
                found.append(Manifest(**content, shards=entries))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: delete its folder and run jobs/index.py again") from error
    return found


def versions(library: Library, run: str) -> list[str]:
    return [name for name in library.folders("indexes", run) if name != "shards"]


def publish(library: Library, manifest: Manifest, reference: Reference) -> Manifest:
    """Write a version whose shards are there already; its manifest last."""
    entries = manifest.shards
    live = [entry.tracks - len(entry.deleted) for entry in entries]
    finished = replace(
        manifest,
        tracks=sum(live),
        ef=max((entry.ef for entry in entries), default=manifest.ef),
        recall=float(np.average([entry.recall for entry in entries], weights=live)) if entries else 1.0,
    )
    folder = library.path("indexes", manifest.run, manifest.version)
    library.filesystem.create_dir(folder, recursive=True)
    content = np.empty(len(reference.tracks), [("track", "i8"), ("vector", "f4", manifest.dimension)])
    content["track"], content["vector"] = reference.tracks, reference.vectors
    with library.filesystem.open_output_stream(f"{folder}/reference.npy") as stream:
        np.save(stream, content)
    write_json(library.filesystem, f"{folder}/manifest.json", asdict(finished))
    return finished


def read_reference(library: Library, manifest: Manifest) -> Reference:
    path = library.path("indexes", manifest.run, manifest.version, "reference.npy")
    with library.filesystem.open_input_file(path) as stream:
        content = np.load(stream)
    return Reference(content["track"].copy(), content["vector"].copy())


def following(before: Manifest | None) -> str:
    return f"{int(before.version) + 1 if before else 1:06d}"


def delete(library: Library, run: str, tracks: Keys) -> int:
    """Mark tracks, named by keys without revision, deleted in a new version of a run's index; their number.
    They stay in its files, and in versions before, until these are built anew: see `compact`."""
    before = newest_manifest(library, run)
    if before is None:
        return 0
    known = [live_tracks(library, run, entry) for entry in before.shards]
    gone = [part["label"][np.isin(part["key"] >> REVISION_BITS, tracks)] for part in known]
    if not any(map(len, gone)):
        return 0
    manifest = replace(before, version=following(before), shards=without(before.shards, gone))
    publish(library, manifest, read_reference(library, before))
    return sum(map(len, gone))


LIVE = np.dtype([("key", "i8"), ("checksum", "i8"), ("label", "i8")])


def live_tracks(library: Library, run: str, entry: ShardEntry) -> NDArray[np.void]:
    """Keys, checksums and labels of a shard's live tracks, of LIVE."""
    path = library.path("indexes", run, "shards", entry.id, TRACKS)
    with library.filesystem.open_input_file(path) as file:
        fields = pa.ipc.open_file(file).schema
        wanted = [fields.get_field_index(name) for name in ("track_key", "checksum")]
        rows = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=wanted)).read_all()
    live = np.empty(rows.num_rows, LIVE)
    live["key"], live["checksum"] = rows["track_key"].to_numpy(), rows["checksum"].to_numpy()
    live["label"] = np.arange(rows.num_rows)
    return np.delete(live, entry.deleted)


def without(entries: Sequence[ShardEntry], gone: Sequence[NDArray[np.int64]]) -> list[ShardEntry]:
    """The shards with labels of each marked deleted; those that have no live track left are dropped."""
    marked = [
        replace(entry, deleted=sorted({*entry.deleted, *labels.tolist()}))
        for entry, labels in zip(entries, gone, strict=True)
    ]
    return [entry for entry in marked if len(entry.deleted) < entry.tracks]


def prune(library: Library, run: str, keep: int) -> None:
    """Delete all versions but the newest ones, those that were never finished, and the shards that no version
    refers to."""
    finished = manifests(library, run)
    kept = {one.version for one in finished[:keep]}
    used = {entry.id for one in finished[:keep] for entry in one.shards}
    for version in versions(library, run):
        if version not in kept:
            library.filesystem.delete_dir(library.path("indexes", run, version))
    for shard in library.folders("indexes", run, "shards"):
        if shard not in used:
            library.filesystem.delete_dir(library.path("indexes", run, "shards", shard))


@contextmanager
def local(library: Library, run: str, entry: ShardEntry) -> Iterator[Path]:
    """A shard's files, verified, where they can be mapped: in the library itself, or copied while the context
    lasts. Raises ValueError where a file is not what the manifest says."""
    source = library.path("indexes", run, "shards", entry.id)
    with tempfile.TemporaryDirectory(prefix="songray-index-") as copy:
        here = isinstance(library.filesystem, pa.fs.LocalFileSystem)
        folder = Path(source if here else copy)
        try:
            if not here:
                pa.fs.copy_files(source, copy, library.filesystem, pa.fs.LocalFileSystem())
            damaged = [name for name, sum in entry.checksums.items() if checksum(folder / name) != sum]
        except FileNotFoundError as error:
            raise ValueError(f"{source} lacks a file ({error}): run jobs/compact.py") from error
        if damaged:
            raise ValueError(f"{source}/{damaged[0]} is damaged (checksum): run jobs/compact.py")
        yield folder


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Index:
    """Shards of one version in this process, read-only, as one."""

    def __init__(self, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.manifest = manifest
        self.shards = {shard.number: shard for shard in shards}
        self.partial = False  # no shard ever fails to answer here

    @classmethod
    def open(cls, library: Library, manifest: Manifest, numbers: Sequence[int] | None = None) -> Index:
        """Load and verify the shards, or those of some numbers in the manifest; raises ValueError where a
        file is not what the manifest says."""
        opened = []
        for number in range(len(manifest.shards)) if numbers is None else numbers:
            entry = manifest.shards[number]
            with local(library, manifest.run, entry) as folder:
                opened.append(Shard(folder, entry.deleted, number))
        return cls(manifest, opened)

    def __len__(self) -> int:
        """Live tracks."""
        return sum(map(len, self.shards.values()))

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        """Of the tracks that are here, the one CANDIDATE each, whose cosine means nothing."""
        found: dict[str, Candidates] = {}
        for shard in self.shards.values():
            labels = shard.find(track_ids)
            candidates = shard.candidates(list(labels.values()))
            found |= {name: candidates[[number]] for number, name in enumerate(labels)}
        return found

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        """(places, dimension), of length 1"""
        vectors = np.empty((len(places), self.manifest.dimension), np.float32)
        numbers, labels = np.array(places, np.int64).reshape(-1, 2).T
        for number, shard in self.shards.items():
            vectors[numbers == number] = shard.vectors(labels[numbers == number])
        return vectors

    async def nearest(self, queries: Vectors, k: int, filters: Filters = EVERYTHING) -> list[Candidates]:
        """Of each query, (queries, dimension), the k nearest tracks that fit, or all that do: by falling
        cosine, then place."""
        several = list(self.shards.values())
        if filters == EVERYTHING:  # so soon that a thread would take longer
            parts = [shard.nearest(queries, k, filters, self.manifest.ef) for shard in several]
        else:
            ask = (asyncio.to_thread(one.nearest, queries, k, filters, self.manifest.ef) for one in several)
            parts = await asyncio.gather(*ask)
        return merged(parts, k) if len(parts) != 1 else parts[0]

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        """What the catalogue says of tracks."""
        rows: dict[Place, Row] = {}
        for number, shard in self.shards.items():
            labels = [label for of, label in places if of == number]
            rows |= {(number, label): row for label, row in zip(labels, shard.rows(labels), strict=True)}
        return [rows[place] for place in places]

    async def search(self, text: str, limit: int) -> list[Place]:
        """Tracks whose title, artists and album hold such words, best match first."""
        return [place for _, place in await self.scored(text, limit)]

    async def scored(self, text: str, limit: int) -> list[tuple[float, Place]]:
        """As search, each after its score, negated: so that the lists of several indexes sort into one."""
        ask = (asyncio.to_thread(shard.search, text, limit) for shard in self.shards.values())
        found = zip(self.shards, await asyncio.gather(*ask), strict=True)
        return sorted((-score, (number, label)) for number, part in found for label, score in part)[:limit]

    async def points(self, bbox: tuple[float, float, float, float] | None, limit: int) -> Points:
        """Places on the map within (left, bottom, right, top), those of the lowest lot first."""
        every = np.concatenate([shard.points(bbox, limit) for shard in self.shards.values()])
        return every[np.argsort(every["lot"], kind="stable")[:limit]]

    async def count(self, filters: Filters = EVERYTHING) -> int:
        """Tracks that fit."""
        return sum(shard.count(filters) for shard in self.shards.values())


def merged(parts: Sequence[list[Candidates]], k: int) -> list[Candidates]:
    """What several shards answered to the same queries, as one answer to each."""
    return [ranked(answers, k) for answers in zip(*parts, strict=True)]
