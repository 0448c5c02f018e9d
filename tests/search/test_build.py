"""Versions of an index: what is built, appended, deleted, kept and refused, on constructed spaces."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from songray.amend import RemoveConfig, remove, rewrite
from songray.learning import runs
from songray.learning.models import MODELS
from songray.learning.runs import Encoder, Run
from songray.library import REVISION_BITS, Library, track_key
from songray.search.build import IndexConfig, index
from songray.search.ranking import places
from songray.search.shard import FILES, Facets, Filters
from songray.search.version import Index, Manifest, delete, newest_manifest

T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("cluster")


def fill(library: Library, vectors: np.ndarray, first: int = 0, revision: int = 0) -> None:
    """Tracks `a:<n>` with given vectors, as the stages before would leave them."""
    ids = [f"a:{number}" for number in range(first, first + len(vectors))]
    keys = [track_key(one, revision) for one in ids]
    table = library.table("tracks")
    rows = [
        {
            "track_key": key,
            "track_id": one,
            "crawl": 1 + 2 * revision,
            "source": "a",
            "title": f"Björk {one[2:]}",
            "genres": [],
        }
        | {"artist_names": ["The Knife"], "artist_ids": ["x"], "location": "/private/place.mp3"}
        for key, one in zip(keys, ids, strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{first}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
    embedded = {"track_key": pa.array(keys, pa.int64()), "track_id": ids, "embedding": column}
    library.table("embeddings", "mfcc-x").append(pa.table(embedded), f"{first}")


@pytest.fixture
def indexed(library: Library) -> Library:
    """A library of 300 tracks with vectors of a run, not indexed yet."""
    fill(trained(library), units(300))
    return library


def trained(library: Library) -> Library:
    """With a run whose vectors have eight dimensions."""
    model = MODELS["mfcc"](coefficients=4).build()
    counts = {"train": 1, "validation": 1}
    run = Run("mfcc-x", "mfcc", {"coefficients": 4}, {}, "default", counts, "", {}, {}, [])
    library.filesystem.create_dir(library.path("runs", "mfcc-x"), recursive=True)
    runs.save(library, run, Encoder(model, np.zeros(8, np.float32), np.eye(8, dtype=np.float32)))
    return library


def units(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed).normal(size=(count, 8))
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def opened(library: Library, **settings: Any) -> Index:
    return Index.open(library, index(library, IndexConfig(**settings)).manifest)


def test_a_version_is_written_only_when_something_has_changed(indexed: Library) -> None:
    first, again = index(indexed, IndexConfig()), index(indexed, IndexConfig())
    assert (first.new, again.new, again.manifest) == (True, False, first.manifest)
    fill(indexed, units(8, seed=1), first=300)
    grown = index(indexed, IndexConfig())
    assert (grown.new, grown.manifest.version, grown.manifest.tracks) == (True, "000002", 308)
    assert len(Index.open(indexed, first.manifest)) == 300  # the older version still answers
    assert index(indexed, IndexConfig(links=5)).manifest.parameters["M"] == 5
    assert not index(indexed, IndexConfig()).new  # what is left out is as it was


def test_shards_together_answer_as_one(indexed: Library) -> None:
    one = opened(indexed)
    several = opened(indexed, shard_tracks=70, compact=True)
    assert [entry.tracks for entry in several.manifest.shards] == [60] * 5
    queries = units(20, seed=9)
    for mine, other in zip(ask(several.nearest(queries, 25)), ask(one.nearest(queries, 25)), strict=True):
        names = [[row["track_id"] for row in shown(*pair)] for pair in ((several, mine), (one, other))]
        assert names[0] == names[1]
        assert mine["cosine"] == pytest.approx(other["cosine"], abs=1e-5)
    assert ids(several, ask(several.search("bjork 123", 1))) == ids(one, ask(one.search("bjork 123", 1)))
    points = ask(several.points(None, 40)), ask(one.points(None, 40))
    assert points[0]["lot"].tolist() == points[1]["lot"].tolist()
    found = ask(several.find(["a:5", "a:250", "a:999"]))
    both = places(np.concatenate(list(found.values())))
    assert ids(several, both) == ["a:5", "a:250"]
    assert ask(several.vectors(both)) == pytest.approx(units(300)[[5, 250]], abs=1e-3)
    assert ask(several.count(Filters(include=Facets(tracks=("a:5", "a:250"))))) == 2
    half = Index.open(indexed, several.manifest, [1, 3])
    assert set(half.shards) == {1, 3} and len(half) == 120


def ask(answer: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(answer)


def shown(index: Index, found: np.ndarray) -> list[dict[str, Any]]:
    return ask(index.rows(places(found)))


def ids(index: Index, places: list[tuple[int, int]]) -> list[str]:
    return [row["track_id"] for row in ask(index.rows(places))]


def live(index: Index) -> dict[str, str]:
    """Titles by id of all tracks that search can find."""
    (found,) = ask(index.nearest(units(1, seed=3), 10_000))
    rows = shown(index, found)
    assert len(rows) == len(index) == index.manifest.tracks == len({row["track_id"] for row in rows})
    return {row["track_id"]: row["title"] for row in rows}


def test_new_tracks_fill_the_last_shard_and_the_others_stay(indexed: Library) -> None:
    config = IndexConfig(shard_tracks=200)
    before = index(indexed, config).manifest
    fill(indexed, units(90, seed=1), first=300)
    fill(indexed, units(40, seed=2), first=390)
    after = index(indexed, config).manifest
    assert [entry.tracks for entry in after.shards] == [150, 200, 80]
    assert after.shards[0] == before.shards[0] and after.shards[1].id != before.shards[1].id
    grown = Index.open(indexed, after)
    vectors = np.concatenate([units(300), units(90, seed=1), units(40, seed=2)])
    for query in units(10, seed=5).astype(np.float32):
        (found,) = ask(grown.nearest(query[None], 10))
        assert [row["track_id"] for row in shown(grown, found)] == [
            f"a:{number}" for number in np.argsort(-(vectors @ query))[:10]
        ]


def test_a_track_that_changed_is_as_it_is_now(indexed: Library) -> None:
    first = opened(indexed)
    tracks = indexed.table("tracks")
    rows = [row for row in tracks.read().to_pylist() if row["track_id"] in ("a:4", "a:5")]
    changed = rows[0] | {"title": "Another", "checksum": 99, "crawl": 2}
    anew = rows[1] | {"title": "Revised", "revision": 1, "track_key": rows[1]["track_key"] + 1, "crawl": 2}
    tracks.append(pa.Table.from_pylist([changed, anew], tracks.schema()), "later")
    second = opened(indexed)
    assert (second.manifest.tracks, second.manifest.shards[0].tracks) == (300, 301)
    titles = live(second)
    assert titles[changed["track_id"]] == "Another"
    fill(indexed, units(1, seed=8), first=int(anew["track_id"][2:]), revision=1)
    third = opened(indexed)
    assert live(third) == live(first) | {"a:4": "Another", "a:5": "Björk 5"}
    (vector,) = ask(third.vectors(places(ask(third.find(["a:5"]))["a:5"])))
    assert vector == pytest.approx(units(1, seed=8)[0], abs=1e-3)


def test_removed_tracks_never_answer_from_that_moment(indexed: Library) -> None:
    before = index(indexed, IndexConfig(shard_tracks=100)).manifest
    gone = [f"a:{number}" for number in range(0, 300, 3)]
    told = remove(indexed, RemoveConfig((*gone, "a:999")))
    assert "answers of indexes: mfcc-x 100" in told
    manifest = newest_manifest(indexed, "mfcc-x")
    assert (manifest.version, manifest.tracks) == ("000002", 200)
    assert [one.id for one in manifest.shards] == [one.id for one in before.shards]
    left = Index.open(indexed, manifest)
    assert live(left).keys() == {f"a:{number}" for number in range(300)} - set(gone)
    assert ask(left.find(gone)) == {} and ids(left, ask(left.search("björk 3", 1))) != ["a:3"]
    assert "answers" not in remove(indexed, RemoveConfig(("a:999",)))
    assert not index(indexed, IndexConfig(shard_tracks=100)).new
    compact = index(indexed, IndexConfig(shard_tracks=100, compact=True, keep=1)).manifest
    assert [(one.tracks, one.deleted) for one in compact.shards] == [(100, []), (100, [])]
    assert live(Index.open(indexed, compact)) == live(left)
    assert len(indexed.folders("indexes", "mfcc-x", "shards")) == 2  # what was deleted is on no disk


steps = st.lists(
    st.tuples(st.just("add"), st.integers(1, 30))
    | st.tuples(st.just("remove"), st.sets(st.integers(0, 60), min_size=1, max_size=40)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_appended_and_deleted_in_any_order_the_live_set_is_the_same(
    steps: list[tuple[str, Any]], tmp_path: Path
) -> None:
    library = trained(Library.open(tempfile.mkdtemp(dir=tmp_path)))
    fill(library, units(20))
    config = IndexConfig(shard_tracks=25, links=8)
    index(library, config)
    expected, count = {f"a:{number}": units(20)[number] for number in range(20)}, 20
    for step, value in steps:
        if step == "add":
            fill(library, units(value, seed=count), first=count)
            expected |= {f"a:{count + n}": vector for n, vector in enumerate(units(value, seed=count))}
            count += value
            index(library, config)
        elif len(expected) > len(gone := {f"a:{number}" for number in value} & expected.keys()):
            delete(library, "mfcc-x", np.array([track_key(one, 0) >> REVISION_BITS for one in sorted(gone)]))
            expect_rows_without(library, gone)
            expected = {name: vector for name, vector in expected.items() if name not in gone}
        left = Index.open(library, newest_manifest(library, "mfcc-x"))
        assert live(left).keys() == expected.keys()
        query = units(1, seed=77)[0]
        (found,) = ask(left.nearest(query[None].astype(np.float32), 5))
        ranked = sorted(expected, key=lambda name: -expected[name] @ query)
        assert [row["track_id"] for row in shown(left, found)] == ranked[:5]


def expect_rows_without(library: Library, gone: set[str]) -> None:
    """As remove leaves the tables: files without these tracks."""
    for table in (library.table("tracks"), library.table("embeddings", "mfcc-x")):
        keys = np.sort([track_key(one, 0) >> REVISION_BITS for one in gone]).astype(np.int64)
        for path in table.files():
            rewrite(table, path, sorted(gone), keys)


def test_a_build_that_was_cut_off_is_no_index_and_leaves_nothing(indexed: Library) -> None:
    manifest = index(indexed, IndexConfig()).manifest
    place = Path(indexed.path("indexes", "mfcc-x"))
    (place / manifest.version / "manifest.json").rename(place / manifest.version / "manifest.json.part")
    (place / "shards" / "000009-0000").mkdir()
    assert newest_manifest(indexed, "mfcc-x") is None
    again = index(indexed, IndexConfig())
    assert (again.new, again.manifest.version) == (True, "000001")
    assert sorted(path.name for path in place.iterdir()) == ["000001", "shards"]
    assert [path.name for path in (place / "shards").iterdir()] == ["000001-0000"]
    assert len(live(Index.open(indexed, again.manifest))) == 300


def test_only_the_newest_versions_and_their_shards_are_kept(indexed: Library) -> None:
    for number in range(300, 303):
        index(indexed, IndexConfig())
        fill(indexed, units(1, seed=number), first=number)
    index(indexed, IndexConfig(keep=2))
    assert indexed.folders("indexes", "mfcc-x") == ["000003", "000004", "shards"]
    assert indexed.folders("indexes", "mfcc-x", "shards") == ["000003-0000", "000004-0000"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["changed", "cut off", "gone"])
def test_a_damaged_file_is_not_served(damaged: tuple[Library, Manifest], name: str, harm: str) -> None:
    library, manifest = damaged
    path = Path(library.path("indexes", "mfcc-x", "shards", manifest.shards[0].id, name))
    content = path.read_bytes()
    try:
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes(content[:-1] + (b"" if harm == "cut off" else bytes([content[-1] ^ 1])))
        with pytest.raises(ValueError, match=rf"{name}.*jobs/compact\.py"):
            Index.open(library, manifest)
    finally:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, Manifest]:
    library = trained(Library.open(str(tmp_path_factory.mktemp("library"))))
    fill(library, units(40))
    return library, index(library, IndexConfig()).manifest


@pytest.mark.parametrize("content", ["{", "[]", '{"run": "mfcc-x"}'])
def test_a_damaged_manifest_is_named(indexed: Library, content: str) -> None:
    path = Path(indexed.path("indexes", "mfcc-x", "000001", "manifest.json"))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=r"000001/manifest\.json is damaged: .*jobs/index\.py"):
        newest_manifest(indexed, "mfcc-x")


def test_an_index_is_copied_from_where_it_cannot_be_mapped(indexed: Library) -> None:
    manifest = index(indexed, IndexConfig()).manifest
    remote = Library(pa.fs.SubTreeFileSystem("/", indexed.filesystem), indexed.root)
    there = Index.open(remote, manifest)
    assert live(there) == live(Index.open(indexed, manifest))
    assert ids(there, ask(there.search("bjork 17", 1))) == ["a:17"]


def test_links_and_ef_are_those_that_reach_the_recall(library: Library) -> None:
    fill(trained(library), units(4000))
    low = index(library, IndexConfig(recall=0.8)).manifest
    high = index(library, IndexConfig(recall=0.999)).manifest
    assert low.recall >= 0.8 and high.recall >= 0.999
    assert (low.parameters["M"], low.ef) < (high.parameters["M"], high.ef)
    queries, vectors = units(200, seed=5).astype(np.float32), units(4000)
    for manifest in (low, high):
        found = ask(Index.open(library, manifest).nearest(queries, 10))
        least = np.sort(queries @ vectors.T, axis=1)[:, -10]
        measured = np.mean([row["cosine"] >= one - 1e-4 for row, one in zip(found, least, strict=True)])
        assert measured == pytest.approx(manifest.recall, abs=0.03)


def test_where_there_is_nothing_to_index_it_says_so(library: Library) -> None:
    with pytest.raises(ValueError, match=r"embeddings/mfcc-x is empty: run jobs/embed\.py first"):
        index(trained(library), IndexConfig())
    with pytest.raises(ValueError, match=r"recall is 1\.5: must be above 0"):
        IndexConfig(recall=1.5)
    with pytest.raises(ValueError, match="links is 1: must be at least 2"):
        IndexConfig(links=1)
