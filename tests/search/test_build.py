"""The stage: versions that are built, appended to, updated and kept, on constructed spaces."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from constructed import RUN, add_run, add_tracks, units
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from songray.amend import RemoveConfig, remove, remove_from
from songray.errors import Conflict, InvalidOption, MissingInput
from songray.keys import REVISION_BITS, KeySet, track_key
from songray.library import Library
from songray.search import build as stage
from songray.search.build import REFERENCE_TRACKS, IndexConfig, index
from songray.search.erase import erase
from songray.search.index import Index
from songray.search.ranking import places
from songray.search.version import (
    Bits,
    ShardEntry,
    Version,
    delete,
    live_tracks,
    newest_version,
    read_reference,
)
from songray.takedown import find_takedown

T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def embedded(library: Library) -> Library:
    """A library with 300 tracks and their embeddings, without an index."""
    add_tracks(add_run(library), units(300))
    return library


def build(library: Library, **options: Any) -> Version:
    return index(library, IndexConfig(**options)).version


def run(answer: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(answer)


def ids(opened: Index, candidates: np.ndarray) -> list[str]:
    return [row["track_id"] for row in run(opened.rows(places(candidates)))]


def live(opened: Index) -> dict[str, str]:
    """Titles by id of all tracks that a search returns."""
    (nearest,) = run(opened.nearest(units(1, seed=3), 10_000))
    rows = run(opened.rows(places(nearest)))
    assert len(rows) == len(opened) == opened.version.tracks == len({row["track_id"] for row in rows})
    return {row["track_id"]: row["title"] for row in rows}


def test_a_version_is_written_only_when_something_has_changed(embedded: Library) -> None:
    first, again = index(embedded, IndexConfig()), index(embedded, IndexConfig())
    assert (first.new, again.new, again.version) == (True, False, first.version)
    add_tracks(embedded, units(8, seed=1), first=300)
    grown = index(embedded, IndexConfig())
    assert (grown.new, grown.version.version, grown.version.tracks) == (True, "000002", 308)
    assert len(Index.open(embedded, first.version)) == 300  # the earlier version can still be opened
    assert build(embedded, links=5).parameters["M"] == 5
    quantised = build(embedded, bits=8)
    assert (quantised.bits, quantised.parameters["M"]) == (8, 8) and quantised.recall >= 0.99
    assert not index(embedded, IndexConfig()).new  # an option that is omitted is as before
    add_tracks(embedded, units(8, seed=2), first=308)
    assert index(embedded, IndexConfig()).version.bits == 8


UNCHANGED = """
import sys
from songray.library import Library
from songray.search.build import IndexConfig, index
print(index(Library.open(sys.argv[1]), IndexConfig()))
assert not {"ray", "torch", "hnswlib", "faiss"} & set(sys.modules)
"""


def test_where_nothing_has_changed_ray_is_not_loaded(embedded: Library) -> None:
    build(embedded)
    command = [sys.executable, "-c", UNCHANGED, embedded.root]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "nothing has changed: kept version 000001, 300 tracks in 1 shards" in finished.stdout


def test_tracks_in_the_current_format_do_not_change_an_index_of_the_earlier_one(library: Library) -> None:
    """Earlier versions kept the completeness in the lower 5 bits of a checksum."""
    add_tracks(add_run(library), units(40))
    tracks = library.table("tracks")
    rows = [row | {"checksum": 1000 + number} for number, row in enumerate(tracks.read().to_pylist())]
    tracks.delete(tracks.files())
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), "earlier")
    build(library)
    current = [row | {"checksum": row["checksum"] & ~31, "completeness": 1, "id_hash": 1} for row in rows]
    tracks.delete(tracks.files())
    tracks.append(pa.Table.from_pylist(current, tracks.schema()), "current")
    assert not index(library, IndexConfig()).new


@pytest.mark.parametrize("bits", [32, 8])
def test_new_tracks_fill_the_last_shard_and_the_others_stay(embedded: Library, bits: Bits) -> None:
    config = IndexConfig(shard_tracks=200, bits=bits)
    before = index(embedded, config).version
    add_tracks(embedded, units(90, seed=1), first=300)
    add_tracks(embedded, units(40, seed=2), first=390)
    after = index(embedded, config).version
    assert [entry.tracks for entry in after.shards] == [150, 200, 80]
    assert after.shards[0] == before.shards[0] and after.shards[1].id != before.shards[1].id
    grown = Index.open(embedded, after)
    vectors = np.concatenate([units(300), units(90, seed=1), units(40, seed=2)])
    for query in units(10, seed=5):
        (nearest,) = run(grown.nearest(query[None], 10))
        assert ids(grown, nearest) == [f"a:{number}" for number in np.argsort(-(vectors @ query))[:10]]


def test_changed_tracks_are_replaced(embedded: Library) -> None:
    first = Index.open(embedded, build(embedded))
    tracks = embedded.table("tracks")
    rows = [row for row in tracks.read().to_pylist() if row["track_id"] in ("a:4", "a:5")]
    changed = rows[0] | {"title": "Another", "checksum": 96, "crawl": 2}
    revised = rows[1] | {"title": "Revised", "revision": 1, "track_key": rows[1]["track_key"] + 1, "crawl": 2}
    tracks.append(pa.Table.from_pylist([changed, revised], tracks.schema()), "later")
    second = Index.open(embedded, build(embedded))
    assert (second.version.tracks, second.version.shards[0].tracks) == (300, 301)
    assert live(second)["a:4"] == "Another"
    add_tracks(embedded, units(1, seed=8), first=5, revision=1)
    third = Index.open(embedded, build(embedded))
    assert live(third) == live(first) | {"a:4": "Another", "a:5": "Björk 5"}
    (vector,) = run(third.vectors(places(run(third.find(["a:5"]))["a:5"])))
    assert vector == pytest.approx(units(1, seed=8)[0], abs=1e-3)


def test_removed_tracks_are_never_returned(embedded: Library) -> None:
    build(embedded, shard_tracks=100)
    removed = [f"a:{number}" for number in range(0, 300, 3)]
    remove(embedded, RemoveConfig((*removed, "a:999")))
    version = newest_version(embedded, RUN)
    assert (version.version, version.tracks) == ("000003", 200)
    assert embedded.folders("indexes", RUN) == ["000003", "shards"]
    assert [entry.deleted for entry in version.shards] == ["", "", ""]
    remaining = Index.open(embedded, version)
    assert live(remaining).keys() == {f"a:{number}" for number in range(300)} - set(removed)
    assert run(remaining.find(removed)) == {}
    (best,) = run(remaining.rows(run(remaining.search("björk 3", 1))))
    assert best["track_id"] != "a:3"
    assert not index(embedded, IndexConfig(shard_tracks=100)).new
    compact = build(embedded, shard_tracks=100, compact=True, keep=1)
    assert [(entry.tracks, entry.deleted) for entry in compact.shards] == [(100, ""), (100, "")]
    assert live(Index.open(embedded, compact)) == live(remaining)
    assert len(embedded.folders("indexes", RUN, "shards")) == 2  # no file holds what was removed


steps = st.lists(
    st.tuples(st.just("add"), st.integers(1, 30))
    | st.tuples(st.just("remove"), st.sets(st.integers(0, 60), min_size=1, max_size=40)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, bits=st.sampled_from([32, 8]))
@example(steps=[("add", 16), ("add", 15), ("add", 16), ("add", 15)], bits=8)  # a shard begins with one track
def test_the_live_tracks_do_not_depend_on_the_order_of_changes(
    steps: list[tuple[str, Any]], bits: Bits, tmp_path: Path
) -> None:
    library = add_run(Library.open(tempfile.mkdtemp(dir=tmp_path)))
    add_tracks(library, units(20))
    config = IndexConfig(shard_tracks=25, links=8, bits=bits)
    index(library, config)
    expected, count = {f"a:{number}": units(20)[number] for number in range(20)}, 20
    for number_of_steps, (step, value) in enumerate(steps):
        if step == "add":
            added = units(value, seed=count)
            add_tracks(library, added, first=count)
            expected |= {f"a:{count + number}": vector for number, vector in enumerate(added)}
            count += value
            index(library, config)
        elif len(expected) > len(removed := {f"a:{number}" for number in value} & expected.keys()):
            numbers = np.array([track_key(name, 0) >> REVISION_BITS for name in sorted(removed)], np.int64)
            with library.lease(f"indexes/{RUN}") as lease:
                if number_of_steps % 2:
                    delete(library, RUN, KeySet(numbers), lease)
                else:
                    erase(library, RUN, KeySet(numbers), lease)
            remove_rows(library, sorted(removed))
            expected = {name: vector for name, vector in expected.items() if name not in removed}
        opened = Index.open(library, newest_version(library, RUN))
        assert live(opened).keys() == expected.keys()
        query = units(1, seed=77)
        (nearest,) = run(opened.nearest(query, 5))
        assert ids(opened, nearest) == sorted(expected, key=lambda name: -expected[name] @ query[0])[:5]


def remove_rows(library: Library, names: list[str]) -> None:
    """Write the tables without these tracks, as `remove` does."""
    takedown = find_takedown(library, names)
    for table in (library.table("embeddings", RUN), library.table("tracks")):
        remove_from(table, takedown)


def test_shards_without_removed_tracks_and_their_reference_stay(library: Library) -> None:
    """A removal rebuilds what holds its tracks; all shards where one of them is in the reference."""
    add_tracks(add_run(library), units(1200))
    before = build(library, shard_tracks=400, links=8)
    with library.lease(f"indexes/{RUN}") as lease:
        reference = read_reference(library, before)
        of_shard = [live_tracks(library, RUN, entry)["key"] >> REVISION_BITS for entry in before.shards]
        outside = np.setdiff1d(of_shard[2], reference.tracks)[:1]
        assert erase(library, RUN, KeySet(outside), lease) == 1
        after = newest_version(library, RUN)
        assert [entry.tracks for entry in after.shards] == [400, 400, 399]
        assert [a.id == b.id for a, b in zip(after.shards, before.shards, strict=True)] == [True, True, False]
        assert np.array_equal(read_reference(library, after).vectors, reference.vectors)
        assert erase(library, RUN, KeySet(reference.tracks[5:6]), lease) == 1
        last = newest_version(library, RUN)
        assert not {entry.id for entry in last.shards} & {entry.id for entry in after.shards}
        replaced = read_reference(library, last).tracks
        assert len(replaced) == REFERENCE_TRACKS and reference.tracks[5] not in replaced
        assert erase(library, RUN, KeySet(reference.tracks[5:6]), lease) == 0
        assert newest_version(library, RUN) == last


def test_an_interrupted_build_is_no_version_and_is_deleted(embedded: Library) -> None:
    version = build(embedded)
    folder = Path(embedded.path("indexes", RUN))
    (folder / version.version / "manifest.json").rename(folder / version.version / "manifest.json.part")
    os.utime(folder / "shards" / version.shards[0].id, (0, 0))
    for path in (folder / "shards" / version.shards[0].id).iterdir():
        os.utime(path, (0, 0))
    (folder / "shards" / "000009-0000").mkdir()  # young: another process may be building it
    assert newest_version(embedded, RUN) is None
    again = index(embedded, IndexConfig())
    assert (again.new, again.version.version) == (True, "000001")
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "shards"]
    names = sorted(path.name for path in (folder / "shards").iterdir())
    assert names == [again.version.shards[0].id, "000009-0000"]
    assert len(live(Index.open(embedded, again.version))) == 300


def test_only_the_newest_versions_are_kept(embedded: Library) -> None:
    for number in range(300, 303):
        build(embedded)
        add_tracks(embedded, units(1, seed=number), first=number)
    build(embedded, keep=2)
    assert embedded.folders("indexes", RUN) == ["000003", "000004", "shards"]
    shards = embedded.folders("indexes", RUN, "shards")
    assert [name.rpartition("-")[0] for name in shards] == ["000003-0000", "000004-0000"]


BUILD = """
import sys
from songray.errors import Conflict
from songray.library import Library
from songray.search.build import IndexConfig, index
try:
    print(index(Library.open(sys.argv[1]), IndexConfig(links=8)))
except Conflict as error:
    print(error)
"""


def test_of_two_processes_that_index_one_writes_and_the_other_is_told(embedded: Library) -> None:
    command = [sys.executable, "-c", BUILD, embedded.root]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    outputs = sorted(process.communicate()[0].decode() for process in both)
    assert outputs[0].startswith(f"index {RUN}: wrote version 000001, 300 tracks in 1 shards")
    # A process that came when the other had ended has nothing left to do.
    assert re.match(
        rf"index {RUN}: nothing has changed|indexes/{RUN} is being written by another", outputs[1]
    )
    assert len(live(Index.open(embedded, newest_version(embedded, RUN)))) == 300


def test_a_build_that_was_taken_over_loses_nothing_of_the_other(
    embedded: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first process builds, it is cut off, and a second one builds, publishes and prunes."""
    first = build(embedded, links=8)
    build_shards = stage.build_shards

    def interrupted(*arguments: Any) -> list[ShardEntry]:
        monkeypatch.setattr(stage, "build_shards", build_shards)
        entries: list[ShardEntry] = build_shards(*arguments)
        with pytest.raises(Conflict, match=f"indexes/{RUN} is being written by another process"):
            index(embedded, IndexConfig(links=8))
        index(replace(embedded, take_over=True), IndexConfig(links=8, compact=True))
        return entries

    monkeypatch.setattr(stage, "build_shards", interrupted)
    add_tracks(embedded, units(1, seed=7), first=300)
    with pytest.raises(Conflict, match=f"indexes/{RUN} was taken over by another process"):
        index(embedded, IndexConfig(links=8))
    second = newest_version(embedded, RUN)
    assert (second.version, second.tracks) == ("000002", 301)
    assert len(live(Index.open(embedded, second))) == 301 and len(Index.open(embedded, first)) == 300


def test_m_and_ef_are_the_smallest_that_reach_the_recall(library: Library) -> None:
    add_tracks(add_run(library), units(4000))
    low, high = build(library, recall=0.8), build(library, recall=0.999)
    assert low.recall >= 0.8 and high.recall >= 0.999
    assert (low.parameters["M"], low.ef) < (high.parameters["M"], high.ef)
    queries, vectors = units(200, seed=5), units(4000)
    least = np.sort(queries @ vectors.T, axis=1)[:, -10]
    for version in (low, high):
        nearest = run(Index.open(library, version).nearest(queries, 10))
        pairs = zip(nearest, least, strict=True)
        measured = np.mean([candidates["cosine"] >= cosine - 1e-4 for candidates, cosine in pairs])
        assert measured == pytest.approx(version.recall, abs=0.03)


def test_missing_embeddings_and_invalid_options_are_refused(library: Library) -> None:
    with pytest.raises(MissingInput, match="embeddings/mfcc-x is empty: run `songray embed` first"):
        index(add_run(library), IndexConfig())
    with pytest.raises(InvalidOption, match=r"recall is 1\.5: must be above 0"):
        IndexConfig(recall=1.5)
    with pytest.raises(InvalidOption, match="links is 1: must be at least 2"):
        IndexConfig(links=1)


@pytest.mark.parametrize("bits", [32, 8])
def test_shards_together_return_what_a_single_one_returns(embedded: Library, bits: Bits) -> None:
    single = Index.open(embedded, build(embedded))
    sharded = Index.open(embedded, build(embedded, shard_tracks=70, compact=True, bits=bits))
    assert [entry.tracks for entry in sharded.version.shards] == [60] * 5
    queries = units(20, seed=9)
    pairs = zip(run(sharded.nearest(queries, 25)), run(single.nearest(queries, 25)), strict=True)
    for merged, whole in pairs:
        assert ids(sharded, merged) == ids(single, whole)
        assert merged["cosine"] == pytest.approx(whole["cosine"], abs=1e-5)
    for opened in (sharded, single):
        assert run(opened.rows(run(opened.search("bjork 123", 1))))[0]["track_id"] == "a:123"
    points = run(sharded.points(None, 40)), run(single.points(None, 40))
    assert points[0]["sample_rank"].tolist() == points[1]["sample_rank"].tolist()
    found = np.concatenate(list(run(sharded.find(["a:5", "a:250", "a:999"])).values()))
    assert sorted(ids(sharded, found)) == ["a:250", "a:5"]
    assert run(sharded.vectors(places(found))) == pytest.approx(
        units(300)[[int(name[2:]) for name in ids(sharded, found)]], abs=1e-3
    )
    half = Index.open(embedded, sharded.version, [1, 3])
    assert set(half.shards) == {1, 3} and len(half) == 120


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e30], ids=str)
def test_a_vector_without_a_direction_is_counted_and_never_indexed(library: Library, value: float) -> None:
    """Whether it is indexed first, appended, or all that there is."""
    vectors = units(60)
    vectors[[3, 17]] = value
    vectors[20, 5] = vectors[20, 5] if value == 0 else value
    unusable = 2 if value == 0 else 3
    add_tracks(add_run(library), vectors)
    first = index(library, IndexConfig())
    assert (first.version.tracks, first.left_out) == (60 - unusable, unusable)
    assert f"; {unusable} left out, whose vectors are not finite or 0" in str(first)
    again = index(library, IndexConfig())
    assert (again.new, again.left_out) == (False, unusable)
    more = units(20, seed=1)
    more[4] = value
    add_tracks(library, more, first=60)
    appended = index(library, IndexConfig())
    assert (appended.version.tracks, appended.added, appended.left_out) == (79 - unusable, 19, unusable + 1)
    opened = Index.open(library, appended.version)
    assert len(live(opened)) == 79 - unusable and run(opened.find(["a:3", "a:17", "a:64"])) == {}
    reference = read_reference(library, appended.version).vectors
    assert np.isfinite(reference).all() and reference.any(axis=1).all()


def test_a_run_whose_vectors_all_lack_a_direction_is_refused(library: Library) -> None:
    add_tracks(add_run(library), np.full((30, 8), np.nan))
    with pytest.raises(MissingInput, match="embeddings/mfcc-x: none of 30 vectors is finite"):
        build(library)
