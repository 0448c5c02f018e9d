"""Versions in storage: listed, pruned, verified and refused; shards are built without Ray."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
from constructed import OPTIONS, RUN, rows, shard_folder, units

from songray.errors import Conflict, CorruptData
from songray.keys import REVISION_BITS, KeySet, track_key
from songray.leases import Lease
from songray.library import Library
from songray.search.graphs import FLOAT_FILE
from songray.search.hnsw import GraphOptions
from songray.search.index import Index
from songray.search.reference import Reference
from songray.search.version import (
    TEXT,
    TRACKS,
    VECTORS,
    ShardEntry,
    Version,
    checksum,
    delete,
    live_tracks,
    newest_version,
    next_version,
    prune,
    publish,
    version_names,
    versions,
)

REFERENCE = Reference(np.arange(3), units(3))


def write_version(
    library: Library, shards: list[str], count: int = 40, options: GraphOptions = OPTIONS
) -> Version:
    """Publish a version of these shards; those that do not exist are written."""
    entries = []
    for number, name in enumerate(shards):
        folder = Path(library.path("indexes", RUN, "shards", name))
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            shard_folder(folder, units(count, seed=number), rows(count), options=options)
        checksums = {file.name: checksum(file) for file in folder.iterdir()}
        entries.append(ShardEntry(name, count, "", 16 + number, 0.99, checksums))
    name = next_version(newest_version(library, RUN))
    version = Version(RUN, name, 0, 8, OPTIONS.parameters, 0, 0.0, 0.99, entries, {})
    with lease(library) as held:
        return publish(library, version, REFERENCE, held)


def lease(library: Library) -> AbstractContextManager[Lease]:
    return library.lease(f"indexes/{RUN}")


def deleted(library: Library, *track_ids: str) -> int:
    numbers = np.array([track_key(track_id, 0) >> REVISION_BITS for track_id in track_ids])
    with lease(library) as held:
        return delete(library, RUN, KeySet(numbers), held)


def test_versions_are_listed_newest_first_with_totals(library: Library) -> None:
    assert newest_version(library, RUN) is None and versions(library, RUN) == []
    first = write_version(library, ["a"])
    second = write_version(library, ["a", "b"])
    assert versions(library, RUN) == [second, first]
    assert version_names(library, RUN) == ["000001", "000002"]
    assert newest_version(library, RUN) == second
    assert (second.tracks, second.ef, second.recall) == (80, 17, pytest.approx(0.99))


def test_prune_keeps_the_newest_versions_and_their_shards(library: Library) -> None:
    write_version(library, ["a"])
    write_version(library, ["b"])
    write_version(library, ["b", "c"])
    unfinished = Path(library.path("indexes", RUN, "000004"))
    unfinished.mkdir()
    with lease(library) as held:
        prune(library, RUN, 2, held)
        assert version_names(library, RUN) == ["000002", "000003"]
        assert library.folders("indexes", RUN, "shards") == ["b", "c"]
        prune(library, RUN, 1, held)
        assert library.folders("indexes", RUN, "shards") == ["b", "c"]
        assert version_names(library, RUN) == ["000003"]


def test_prune_spares_a_shard_that_another_process_may_be_building(library: Library) -> None:
    write_version(library, ["a"])
    shards = Path(library.path("indexes", RUN, "shards"))
    for name, age in (("young", 0), ("old", 7200)):
        shard_folder(shards / name, units(20), rows(20))
        for path in (*(shards / name).iterdir(), shards / name):
            os.utime(path, (time.time() - age,) * 2)
    with lease(library) as held:
        prune(library, RUN, 1, held)
        assert library.folders("indexes", RUN, "shards") == ["a", "young"]
        prune(library, RUN, 1, held, spared_seconds=0)
    assert library.folders("indexes", RUN, "shards") == ["a"]


def test_a_process_that_has_lost_its_lease_neither_publishes_nor_prunes(library: Library) -> None:
    before = write_version(library, ["a"])
    with lease(library) as lost, replace(library, take_over=True).lease(f"indexes/{RUN}") as held:
        later = replace(before, version="000002")
        with pytest.raises(Conflict, match=f"indexes/{RUN} was taken over by another process"):
            publish(library, later, REFERENCE, lost)
        assert versions(library, RUN) == [before]
        publish(library, later, REFERENCE, held)
        with pytest.raises(Conflict, match="was taken over"):
            prune(library, RUN, 1, lost)
        assert [version.version for version in versions(library, RUN)] == ["000002", "000001"]


def test_a_version_that_exists_is_never_overwritten(library: Library) -> None:
    before = write_version(library, ["a"])
    with (
        lease(library) as held,
        pytest.raises(Conflict, match=r"000001/manifest\.json was written by another"),
    ):
        publish(library, replace(before, shards=[]), REFERENCE, held)
    assert versions(library, RUN) == [before]


def test_tracks_are_marked_as_deleted_in_a_new_version(library: Library) -> None:
    assert deleted(library, "a:3") == 0
    before = write_version(library, ["a"])
    assert deleted(library, "a:3", "a:5", "a:99") == 2
    after = newest_version(library, RUN)
    assert (after.version, after.tracks, after.shards[0].deleted_labels.tolist()) == ("000002", 38, [3, 5])
    assert after.shards[0].checksums == before.shards[0].checksums
    assert deleted(library, "a:3", "a:5", "a:99") == 0 and newest_version(library, RUN) == after


def test_a_shard_without_a_live_track_is_left_out(library: Library) -> None:
    write_version(library, ["a"])
    deleted(library, *(row["track_id"] for row in rows(40)))
    version = newest_version(library, RUN)
    assert (version.tracks, version.shards, version.recall) == (0, [], 1.0)


def test_checksums_of_live_tracks_have_no_completeness(library: Library) -> None:
    """Earlier versions kept the completeness in the lower 5 bits of a checksum."""
    version = write_version(library, ["a"])  # with checksums 0…39
    live = live_tracks(library, RUN, version.shards[0])
    assert live["checksum"].tolist() == [0] * 32 + [32] * 8
    assert live["key"].tolist() == [row["track_key"] for row in rows(40)]


@pytest.mark.parametrize("name", [FLOAT_FILE, VECTORS, TRACKS, TEXT])
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_a_damaged_file_is_refused(library: Library, name: str, damage: str) -> None:
    version = write_version(library, ["a"])
    path = Path(library.path("indexes", RUN, "shards", "a", name))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "truncated" else bytes([content[-1] ^ 1])))
    with pytest.raises(CorruptData, match=rf"{name}.*`songray compact`"):
        Index.open(library, version)


@pytest.mark.parametrize("content", ["{", "[]", '{"run": "mfcc-x"}'])
def test_a_damaged_manifest_is_named(library: Library, content: str) -> None:
    path = Path(library.path("indexes", RUN, "000001", "manifest.json"))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(CorruptData, match=r"000001/manifest\.json is damaged: .*`songray index`"):
        newest_version(library, RUN)


@pytest.mark.parametrize("quantised", [False, True])
def test_shards_are_copied_where_files_cannot_be_mapped(library: Library, quantised: bool) -> None:
    version = write_version(library, ["a"], options=replace(OPTIONS, quantised=quantised))
    remote = Library(pa.fs.SubTreeFileSystem("/", library.filesystem), library.root)
    copied, mapped = Index.open(remote, version), Index.open(library, version)
    assert copied.shards[0].rows(range(40)) == mapped.shards[0].rows(range(40))
    assert copied.shards[0].search("song 17", 1) == mapped.shards[0].search("song 17", 1)
    queries = units(5, seed=9)
    of_copy, of_file = (index.shards[0].nearest(queries, 20) for index in (copied, mapped))
    columns = ["label", "cosine"]
    assert [row[columns].tolist() for row in of_copy] == [row[columns].tolist() for row in of_file]
