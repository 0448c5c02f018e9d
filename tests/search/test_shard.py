"""One shard on constructed spaces: filters, deletions, text and the map, against comparing all."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from constructed import GENRES, OPTIONS, rows, shard_folder, units
from hypothesis import given, settings
from hypothesis import strategies as st

from songray.search.filters import CACHED_CHARACTERS, CACHED_FILTERS, Facets, Filters
from songray.search.halves import to_float32
from songray.search.rows import SHOWN
from songray.search.shard import Shard
from songray.tables import TABLES


def matches(row: dict[str, Any], filters: Filters) -> bool:
    """The meaning of filters, one row at a time."""
    values = {
        "genres": {name.lower() for name in row["genres"]},
        "artists": {*row["artist_ids"], *(name.lower() for name in row["artist_names"])},
        "albums": {row["album_id"], row["album"].lower()},
        "sources": {row["source"]},
        "tracks": {row["track_id"]},
    }
    year = row["release_date"] and int(row["release_date"][:4])
    bounds = [(year, filters.years), (row["duration_seconds"], filters.duration_seconds)]
    for name, have in values.items():
        included, excluded = (
            {value if value in have else value.lower() for value in getattr(side, name)}
            for side in (filters.include, filters.exclude)
        )
        if (included and not included & have) or excluded & have:
            return False
    for value, (least, most) in bounds:
        if least is not None and (value is None or value < least):
            return False
        if most is not None and (value is None or value > most):
            return False
    return filters.explicit is None or bool(row["explicit"]) == filters.explicit


def some(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), max_size=2, unique=True).map(tuple)


facets = st.builds(
    Facets,
    genres=some("rock", "JAZZ", "Music", "none"),
    artists=some("r1", "artist 2", "Artist 3"),
    albums=some("l1", "album 2"),
    sources=some("a"),
    tracks=some("a:1", "a:2", "a:399", "b:1"),
)
ranges = st.tuples(st.none() | st.integers(1950, 2020), st.none() | st.integers(1950, 2020))
lengths = st.tuples(st.none() | st.floats(0, 300), st.none() | st.floats(0, 300))
filters = st.builds(Filters, facets, facets, ranges, lengths, st.none() | st.booleans())
SMALL, LARGE = 400, 3000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[int, Path]:
    place = tmp_path_factory.mktemp("shards")
    options = replace(OPTIONS, quantised=getattr(request, "param", False))
    return {
        count: shard_folder(place / f"{count}", units(count), rows(count), options=options)
        for count in (SMALL, LARGE)
    }


in_both_precisions = pytest.mark.parametrize("folders", [False, True], indirect=True, ids=["float", "8 bits"])


@in_both_precisions
@settings(max_examples=100, deadline=None)
@given(
    filters=filters, k=st.integers(1, 30), deleted=st.sets(st.integers(0, SMALL - 1)), seed=st.integers(0, 99)
)
def test_search_among_few_tracks_is_exact(
    folders: dict[int, Path], filters: Filters, k: int, deleted: set[int], seed: int
) -> None:
    shard = Shard(folders[SMALL], sorted(deleted))
    described, vectors = rows(SMALL), units(SMALL)
    matching = [n for n in range(SMALL) if n not in deleted and matches(described[n], filters)]
    query = units(1, seed=1000 + seed)
    (nearest,) = shard.nearest(query, k, filters)
    expected = np.sort(vectors[matching] @ query[0])[::-1][:k]
    assert set(nearest["label"].tolist()) <= set(matching)
    assert len(nearest) == len(set(nearest["label"].tolist())) == min(k, len(matching))
    assert nearest["cosine"] == pytest.approx(expected, abs=1e-3)
    assert list(nearest["cosine"]) == sorted(nearest["cosine"], reverse=True)
    assert len(shard.nearest(query, SMALL, filters)[0]) == len(matching)


@in_both_precisions
@settings(max_examples=25, deadline=None)
@given(
    genres=some(*GENRES),
    k=st.integers(1, 40),
    share=st.sampled_from([0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 99),
    ef=st.sampled_from([4, 16, 64]),
)
def test_search_among_many_tracks_returns_k_that_are_near(
    folders: dict[int, Path], genres: tuple[str, ...], k: int, share: float, seed: int, ef: int
) -> None:
    deleted = set(np.flatnonzero(np.random.default_rng(seed).random(LARGE) < share).tolist())
    shard = Shard(folders[LARGE], sorted(deleted), number=3)
    by_genre = Filters(include=Facets(genres=genres))
    described, vectors = rows(LARGE), units(LARGE)
    matching = [n for n in range(LARGE) if n not in deleted and matches(described[n], by_genre)]
    queries = units(20, seed=1000 + seed)
    hits = 0
    for query, nearest in zip(queries, shard.nearest(queries, k, by_genre, ef), strict=True):
        assert set(nearest["label"].tolist()) <= set(matching) and len(nearest) == min(k, len(matching))
        assert (nearest["shard"] == 3).all()
        assert nearest["cosine"] == pytest.approx(vectors[nearest["label"]] @ query, abs=1e-3)
        least = np.sort(vectors[matching] @ query)[::-1][len(nearest) - 1]
        hits += (nearest["cosine"] >= least - 1e-3).sum()
    assert hits / (len(queries) * min(k, len(matching))) > 0.75  # in eight dimensions, also at ef 4


@in_both_precisions
def test_a_shard_whose_tracks_are_all_deleted_returns_nothing(folders: dict[int, Path]) -> None:
    shard = Shard(folders[SMALL], range(SMALL))
    assert len(shard) == 0 and shard.find(["a:1"]) == {} and shard.search("song", 5) == []
    assert [len(nearest) for nearest in shard.nearest(units(2), 5)] == [0, 0]
    assert len(shard.points(None, 10)) == 0


@pytest.mark.parametrize("quantised", [False, True])
def test_equal_cosines_are_sorted_by_label(tmp_path: Path, quantised: bool) -> None:
    vectors, options = np.repeat(units(3), 5, axis=0), replace(OPTIONS, quantised=quantised)
    shard = Shard(shard_folder(tmp_path / "shard", vectors, rows(15), options=options))
    (nearest,) = shard.nearest(vectors[:1], 5)
    assert nearest["label"].tolist() == [0, 1, 2, 3, 4]


def test_tracks_are_found_by_id_and_shown_as_stored(folders: dict[int, Path]) -> None:
    shard = Shard(folders[SMALL], [7])
    assert shard.find(["a:5", "a:7", "b:5", "a:399"]) == {"a:5": 5, "a:399": 399}
    expected = [{name: rows(SMALL)[n].get(name) for name in SHOWN} | {"tags": []} for n in (399, 5)]
    assert shard.rows([399, 5]) == expected
    assert shard.vectors([399, 5]) == pytest.approx(units(SMALL)[[399, 5]], abs=1e-3)
    assert set(SHOWN) <= set(TABLES["tracks"].columns)


def test_an_id_whose_number_is_taken_has_the_next_one(tmp_path: Path) -> None:
    described = rows(3)
    described[1]["track_key"] = described[0]["track_key"] + (1 << 8)  # as if both ids had the same hash
    shard = Shard(shard_folder(tmp_path / "shard", units(3), described))
    described[0]["track_id"], described[1]["track_id"] = described[1]["track_id"], described[0]["track_id"]
    assert shard.find(["a:0", "a:2"]) == {"a:0": 0, "a:2": 2}
    swapped = Shard(shard_folder(tmp_path / "swapped", units(3), described))
    assert swapped.find(["a:0", "a:2"]) == {"a:0": 1, "a:2": 2}


def test_candidates_have_the_columns_that_ranking_needs(tmp_path: Path) -> None:
    described = rows(6)
    described[1] |= {"title": "Song 0 (Remastered 2011)", "isrc": "X"}
    described[2] |= {"title": None, "artist_ids": [], "artist_names": [], "album": None, "album_id": None}
    described[3] |= {"recording": "X"}
    shard = Shard(shard_folder(tmp_path / "shard", units(6), described))
    (nearest,) = shard.nearest(units(1), 6)
    by_label = {int(candidate["label"]): candidate for candidate in nearest}
    assert by_label[0]["title"] == by_label[1]["title"] != by_label[4]["title"]
    assert by_label[1]["recording"] == by_label[3]["recording"] != 0 == by_label[0]["recording"]
    assert (by_label[2]["artist"], by_label[2]["album"], by_label[2]["title"]) == (0, 0, 0)
    assert np.isnan(by_label[0]["duration"]) and by_label[1]["duration"] == 101


def test_conversion_to_float32_is_that_of_numpy() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    assert np.array_equal(to_float32(finite).view(np.int32), finite.astype(np.float32).view(np.int32))


def test_the_map_spreads_along_the_directions_of_most_variance(tmp_path: Path) -> None:
    vectors = units(300) * [1, 9, 1, 1, 4, 1, 1, 1]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    points = Shard(shard_folder(tmp_path / "shard", vectors, rows(300))).points(None, 300)
    for axis, dimension in (("x", 1), ("y", 4)):
        assert abs(np.corrcoef(points[axis], vectors[points["label"], dimension])[0, 1]) > 0.9


@settings(max_examples=40, deadline=None)
@given(left=st.floats(-1, 1), width=st.floats(0, 1), limit=st.integers(1, 500))
def test_a_smaller_box_contains_all_points_of_a_larger_one(
    folders: dict[int, Path], left: float, width: float, limit: int
) -> None:
    shard = Shard(folders[SMALL], [3, 4])
    whole = shard.points(None, limit)
    assert len(whole) == min(limit, SMALL - 2)
    part = shard.points((left, -1, left + width, 1), limit)
    inside = whole[(left <= whole["x"]) & (whole["x"] <= left + width)]
    assert set(inside["label"].tolist()) <= set(part["label"].tolist())
    assert ((left <= part["x"]) & (part["x"] <= left + width)).all() and len(part) <= limit


def test_a_text_without_words_selects_a_sample(folders: dict[int, Path]) -> None:
    shard = Shard(folders[SMALL], [3])
    sample = [label for label, _ in shard.search("'\"*", 5)]
    assert sample == shard.points(None, 5)["label"].tolist()


def test_appending_is_equivalent_to_building_at_once(folders: dict[int, Path], tmp_path: Path) -> None:
    described, vectors = rows(SMALL), units(SMALL)
    first = shard_folder(tmp_path / "first", vectors[:250], described[:250])
    grown = Shard(shard_folder(tmp_path / "grown", vectors[250:], described[250:], before=first))
    whole = Shard(folders[SMALL])
    queries = units(20, seed=5)
    for appended, built in zip(grown.nearest(queries, 10), whole.nearest(queries, 10), strict=True):
        assert appended["label"].tolist() == built["label"].tolist()
        assert appended["title"].tolist() == built["title"].tolist()
    assert grown.rows(range(SMALL)) == whole.rows(range(SMALL))
    assert grown.search("song 260", 3) == whole.search("song 260", 3)
    assert grown.find(["a:10", "a:300"]) == {"a:10": 10, "a:300": 300}


def test_what_filters_match_is_kept_in_a_bit_a_track_and_by_listener_not_at_all(
    folders: dict[int, Path],
) -> None:
    shard, query = Shard(folders[LARGE]), units(1, seed=1)

    def allocated(different: list[Filters]) -> int:
        """Bytes that are still allocated after a search with each of the filters."""
        tracemalloc.start()
        for filters in different:
            shard.nearest(query, 5, filters)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    listeners = [Filters(exclude=Facets(tracks=(f"a:{n}",))) for n in range(300)]
    allocated(listeners[:10])  # what any first search allocates
    assert allocated(listeners) < 10_000
    long = [Filters(include=Facets(genres=("x" * 10_000, str(n)))) for n in range(100)]
    assert allocated(long) < 10_000
    bounds = [Filters(duration_seconds=(None, 100 + n)) for n in range(300)]
    assert allocated(bounds) < CACHED_FILTERS * (LARGE / 8 + 2 * CACHED_CHARACTERS)
