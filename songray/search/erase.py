"""Removes tracks from an index: rebuilds the shards that hold them, and deletes all earlier versions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from songray.cluster import connect
from songray.keys import REVISION_BITS, KeySet
from songray.leases import Lease
from songray.library import Library
from songray.search.build import REFERENCE_TRACKS, IndexConfig
from songray.search.reference import Reference
from songray.search.target import have_direction, lowest_tracks, read_vectors
from songray.search.version import (
    TRACKS,
    VECTORS,
    ShardEntry,
    Version,
    delete,
    local_copy,
    newest_version,
    next_version,
    prune,
    publish,
    read_reference,
    shard_name,
    store_shard,
    version_names,
)


def erase(library: Library, run: str, tracks: KeySet, lease: Lease) -> int:
    """Remove tracks from all files of a run's index, deleted ones and those of former versions included.
    Returns how many of them the newest version contained.

    A first version, written at once, only marks them as deleted, so that no answer contains them while the
    shards that hold them are rebuilt. A killed call can be repeated.
    """
    deleted = delete(library, run, tracks, lease)
    shards = [name for name in library.folders("indexes", run, "shards") if holds(library, run, name, tracks)]
    references = [name for name in version_names(library, run) if reference_holds(library, run, name, tracks)]
    before = newest_version(library, run)
    if before and (before.version in references or {entry.id for entry in before.shards} & set(shards)):
        rebuild(library, before, tracks, shards, before.version in references, lease)
    if shards or references:
        prune(library, run, 1, lease, spared_seconds=0)
    return deleted


def holds(library: Library, run: str, shard: str, tracks: KeySet) -> bool:
    """Whether a shard in storage has a row of the tracks, live or not, or was left unfinished."""
    path = library.path("indexes", run, "shards", shard, TRACKS)
    try:
        with library.filesystem.open_input_file(path) as file:
            field = pa.ipc.open_file(file).schema.get_field_index("track_key")
            options = pa.ipc.IpcReadOptions(included_fields=[field])
            keys = pa.ipc.open_file(file, options=options).read_all()["track_key"].to_numpy()
    except (OSError, pa.ArrowInvalid):
        return True
    return bool(tracks.contains(keys).any())


def reference_holds(library: Library, run: str, version: str, tracks: KeySet) -> bool:
    """Whether the reference of a version has a vector of the tracks, or was left unfinished."""
    path = library.path("indexes", run, version, "reference.npy")
    try:
        with library.filesystem.open_input_file(path) as file:
            numbers = np.load(file)["track"]
    except (OSError, ValueError, EOFError):
        return True
    return bool(np.isin(numbers, tracks.every_number()).any())


def rebuild(
    library: Library, before: Version, tracks: KeySet, shards: Sequence[str], every: bool, lease: Lease
) -> None:
    """Write a version of which some shards, or all, are built anew from their own files, without tracks that
    are deleted. Where the reference changes, all are: a map has the axes of one reference."""
    connect()
    import ray

    version = replace(before, version=next_version(before))
    reference = read_reference(library, before)
    if every:
        reference = new_reference(library, before, reference, tracks)
    entries = [entry for entry in before.shards if every or entry.id in shards]
    task, shared = ray.remote(rebuild_shard).options(num_cpus=IndexConfig.threads), ray.put(reference)
    rebuilt = ray.get(
        [
            task.remote(library, version, shared, shard_name(version, number), entry, tracks)
            for number, entry in enumerate(entries)
        ]
    )
    replaced = dict(zip((entry.id for entry in entries), rebuilt, strict=True))
    kept = [replaced.get(entry.id, entry) for entry in before.shards]
    publish(library, replace(version, shards=[entry for entry in kept if entry.tracks]), reference, lease)


def new_reference(library: Library, before: Version, old: Reference, tracks: KeySet) -> Reference:
    """A random sample of the tracks that remain, as a new index has; what remains of the old one, where the
    library no longer has vectors."""
    if before.map:  # the map stays as it is for the tracks that remain
        return old.without(tracks.every_number())
    sample = lowest_tracks(library, before.run, REFERENCE_TRACKS, tracks)
    if not len(sample):
        return old.without(tracks.every_number())
    vectors = read_vectors(library, before.run, sample)
    is_usable = have_direction(vectors)
    if not is_usable.any():
        return old.without(tracks.every_number())
    return Reference(sample.rows["key"][is_usable] >> REVISION_BITS, vectors[is_usable])


def rebuild_shard(
    library: Library, version: Version, reference: Reference, name: str, entry: ShardEntry, tracks: KeySet
) -> ShardEntry:
    """Worker: build a shard anew from the vectors and rows of its live tracks that remain."""
    from songray.search.halves import to_float32
    from songray.search.hnsw import GraphOptions
    from songray.search.rows import read_rows
    from songray.search.shard_files import write_shard

    options = GraphOptions(version.parameters, version.recall_target, IndexConfig.threads, version.bits == 8)
    with (
        tempfile.TemporaryDirectory(prefix="songray-shard-") as temporary,
        local_copy(library, version.run, entry) as old,
    ):
        rows, halves = read_rows(old), np.load(old / VECTORS)
        is_kept = ~tracks.contains(rows["track_key"].to_numpy())
        is_kept[entry.deleted_labels] = False
        if not is_kept.any():
            return replace(entry, tracks=0, deleted="")
        kept = pa.Table.from_batches([rows.filter(pa.array(is_kept))])
        ef, recall = write_shard(Path(temporary), to_float32(halves[is_kept]), kept, reference, options)
        checksums = store_shard(library, version.run, name, Path(temporary))
    return ShardEntry(name, kept.num_rows, "", ef, recall, checksums, entry.hosts)
