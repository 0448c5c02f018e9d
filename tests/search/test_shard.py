"""One shard on constructed spaces: filters, deletions, text and the map, against comparing all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songray.library import REVISION_BITS, TABLES, track_key
from songray.search.shard import SHOWN, Facets, Filters, Reference, Shard, widened, write
from songray.search.text import bare_title

PARAMETERS = {"M": 16, "ef_construction": 100}
GENRES = ("Rock", "Jazz", "Folk", "Ambient")


def units(count: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def described(count: int) -> list[dict[str, Any]]:
    """Rows in which each filter has something to tell apart, and some things are unknown."""
    return [
        {"track_key": track_key(f"a:{n}", 0), "checksum": n, "track_id": f"a:{n}", "source": "ab"[n % 2],
         "title": f"Song {n}", "artist_ids": [f"r{n % 7}"], "artist_names": [f"Artist {n % 7}"],
         "album_id": f"l{n % 11}", "album": f"Album {n % 11}", 
         "genres": [GENRES[n % 4], "Music"][: 1 + n % 2],
         "release_date": None if n % 5 == 0 else f"{1960 + n % 50}-01-01", "crawl": 1,
         "duration_seconds": None if n % 6 == 0 else 100.0 + n % 200, "explicit": (None, True, False)[n % 3]}
        for n in range(count)
    ]  # fmt: skip


def made(folder: Path, vectors: np.ndarray, rows: list[dict[str, Any]], before: Path | None = None) -> Path:
    table = pa.Table.from_pylist(rows, pa.schema(TABLES["tracks"].columns))
    reference = Reference(*in_order(table["track_key"].to_numpy() >> REVISION_BITS, vectors))
    folder.mkdir()
    write(folder, vectors, table, reference, PARAMETERS, 0.99, before)
    return folder


def in_order(keys: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.argsort(keys)[:50]
    return keys[drawn], vectors[drawn]


def fits(row: dict[str, Any], filters: Filters) -> bool:
    """What the filters mean, a row at a time."""
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
        included, excluded = ({one if one in have else one.lower() for one in getattr(side, name)}
                              for side in (filters.include, filters.exclude))  # fmt: skip
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
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    place = tmp_path_factory.mktemp("shards")
    return {count: made(place / f"{count}", units(count), described(count)) for count in (SMALL, LARGE)}


@settings(max_examples=100, deadline=None)
@given(
    filters=filters, k=st.integers(1, 30), deleted=st.sets(st.integers(0, SMALL - 1)), seed=st.integers(0, 99)
)
def test_search_among_few_is_exact(
    folders: dict[int, Path], filters: Filters, k: int, deleted: set[int], seed: int
) -> None:
    shard = Shard(folders[SMALL], sorted(deleted))
    rows, vectors = described(SMALL), units(SMALL)
    fitting = [n for n in range(SMALL) if n not in deleted and fits(rows[n], filters)]
    query = units(1, seed=1000 + seed)
    (found,) = shard.nearest(query, k, filters)
    expected = np.sort(vectors[fitting] @ query[0])[::-1][:k]
    assert set(found["label"].tolist()) <= set(fitting)
    assert len(found) == len(set(found["label"].tolist())) == min(k, len(fitting))
    assert found["cosine"] == pytest.approx(expected, abs=1e-3)
    assert list(found["cosine"]) == sorted(found["cosine"], reverse=True)
    assert shard.count(filters) == len(fitting)


@settings(max_examples=25, deadline=None)
@given(
    genres=some(*GENRES),
    k=st.integers(1, 40),
    share=st.sampled_from([0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 99),
    ef=st.sampled_from([4, 16, 64]),
)
def test_search_among_many_finds_k_that_are_near(
    folders: dict[int, Path], genres: tuple[str, ...], k: int, share: float, seed: int, ef: int
) -> None:
    deleted = np.flatnonzero(np.random.default_rng(seed).random(LARGE) < share)
    shard = Shard(folders[LARGE], deleted.tolist(), number=3)
    wanted = Filters(include=Facets(genres=genres))
    rows, vectors = described(LARGE), units(LARGE)
    gone = set(deleted.tolist())
    fitting = [n for n in range(LARGE) if n not in gone and fits(rows[n], wanted)]
    queries = units(20, seed=1000 + seed)
    hits = 0
    for query, found in zip(queries, shard.nearest(queries, k, wanted, ef), strict=True):
        assert set(found["label"].tolist()) <= set(fitting) and len(found) == min(k, len(fitting))
        assert (found["shard"] == 3).all()
        assert found["cosine"] == pytest.approx(vectors[found["label"]] @ query, abs=1e-3)
        least = np.sort(vectors[fitting] @ query)[::-1][len(found) - 1]
        hits += (found["cosine"] >= least - 1e-3).sum()
    assert hits / (len(queries) * min(k, len(fitting))) > 0.75  # graph of eight dimensions, also at ef 4


def test_a_shard_whose_tracks_are_all_deleted_answers_nothing(folders: dict[int, Path]) -> None:
    shard = Shard(folders[SMALL], range(SMALL))
    assert len(shard) == 0 and shard.find(["a:1"]) == {} and shard.search("song", 5) == []
    assert [len(found) for found in shard.nearest(units(2), 5)] == [0, 0]
    assert len(shard.points(None, 10)) == 0


def test_equal_cosines_come_in_the_order_of_labels(tmp_path: Path) -> None:
    vectors = np.repeat(units(3), 5, axis=0)
    shard = Shard(made(tmp_path / "s", vectors, described(15)))
    (found,) = shard.nearest(vectors[:1], 5)
    assert found["label"].tolist() == [0, 1, 2, 3, 4]


def test_tracks_are_found_by_id_and_shown_as_they_are(folders: dict[int, Path]) -> None:
    shard = Shard(folders[SMALL], [7])
    assert shard.find(["a:5", "a:7", "b:5", "a:399"]) == {"a:5": 5, "a:399": 399}
    expected = [{name: described(SMALL)[n].get(name) for name in SHOWN} for n in (399, 5)]
    assert shard.rows([399, 5]) == expected
    assert shard.vectors([399, 5]) == pytest.approx(units(SMALL)[[399, 5]], abs=1e-3)


def test_candidates_carry_what_collapsing_needs(tmp_path: Path) -> None:
    rows = described(6)
    rows[1] |= {"title": "Song 0 (Remastered 2011)", "isrc": "X"}
    rows[2] |= {"title": None, "artist_ids": [], "artist_names": [], "album": None, "album_id": None}
    rows[3] |= {"recording": "X"}
    shard = Shard(made(tmp_path / "s", units(6), rows))
    (found,) = shard.nearest(units(1), 6)
    by = {int(one["label"]): one for one in found}
    assert by[0]["title"] == by[1]["title"] != by[4]["title"]
    assert by[1]["recording"] == by[3]["recording"] != 0 == by[0]["recording"]
    assert (by[2]["artist"], by[2]["album"], by[2]["title"]) == (0, 0, 0)
    assert np.isnan(by[0]["duration"]) and by[1]["duration"] == 101


@pytest.mark.parametrize(
    ("title", "bare"),
    [
        ("Heroes (2017 Remaster)", "heroes"),
        ("Heroes - Live at Wembley", "heroes"),
        ("Heroes [Radio Edit] (feat. Someone)", "heroes"),
        ("(I Can't Get No) Satisfaction - Mono", "i can t get no satisfaction"),
        ("Live and Let Die", "live and let die"),
        ("Live", "live"),
        ("(Live)", "live"),
        ("Jóga", "joga"),
        ("", ""),
    ],
)
def test_titles_of_editions_are_one(title: str, bare: str) -> None:
    assert bare_title(title) == bare


def test_half_precision_is_widened_as_numpy_does() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    assert np.array_equal(widened(finite).view(np.int32), finite.astype(np.float32).view(np.int32))


def test_hubness_is_the_mean_cosine_to_the_nearest_of_the_reference_but_itself() -> None:
    vectors, keys = units(60), np.arange(60)
    found = Reference(keys[:20], vectors[:20]).hubness(keys, vectors)
    cosines = vectors @ vectors[:20].T
    cosines[np.arange(20), np.arange(20)] = -2
    assert found == pytest.approx(np.sort(cosines, axis=1)[:, -10:].mean(axis=1), abs=1e-5)
    assert Reference(keys[:1], vectors[:1]).hubness(keys[:1], vectors[:1]).tolist() == [0]


def test_the_map_spreads_along_the_directions_of_most_variance(tmp_path: Path) -> None:
    vectors = units(300) * [1, 9, 1, 1, 4, 1, 1, 1]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    points = Shard(made(tmp_path / "s", vectors, described(300))).points(None, 300)
    for axis, dimension in (("x", 1), ("y", 4)):
        assert abs(np.corrcoef(points[axis], vectors[points["label"], dimension])[0, 1]) > 0.9


@settings(max_examples=40, deadline=None)
@given(left=st.floats(-1, 1), width=st.floats(0, 1), limit=st.integers(1, 500))
def test_zooming_in_only_adds_points(folders: dict[int, Path], left: float, width: float, limit: int) -> None:
    shard = Shard(folders[SMALL], [3, 4])
    whole = shard.points(None, limit)
    assert len(whole) == min(limit, SMALL - 2)
    part = shard.points((left, -1, left + width, 1), limit)
    inside = whole[(left <= whole["x"]) & (whole["x"] <= left + width)]
    assert set(inside["label"].tolist()) <= set(part["label"].tolist())
    assert ((left <= part["x"]) & (part["x"] <= left + width)).all() and len(part) <= limit


SONGS = [
    ("Jóga", "Björk", "Homogenic"), ("Creep", "Radiohead", "Pablo Honey"), ("7", "Prince", "Love Symbol"),
    ("Creeping Death", "Metallica", "Ride"), ("One", "U2", "Achtung Baby"), ("99 Luftballons",
    "Nena", "Nena"),
    ("One", "Metallica", "And Justice for All"), ("Für Elise", "Beethoven", "Bagatelles"),
    ("さくら", "直太朗", "乾いた唄"), ("Naïve", "The Kooks", "Inside In"),
    ("Straße", "Kraftklub", "In Schwarz"),
]  # fmt: skip


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    rows = [
        row | {"title": title, "artist_names": [artist], "album": album}
        for row, (title, artist, album) in zip(described(len(SONGS)), SONGS, strict=True)
    ]
    return Shard(made(tmp_path_factory.mktemp("songs") / "s", units(len(SONGS)), rows))


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("bjork", "Jóga"), ("BJÖRK joga", "Jóga"), ("joga bjork", "Jóga"), ("radoihead", "Creep"),
        ("radiohed creap", "Creep"), ("cre radioh", "Creep"), ("creep", "Creep"),
        ("creeping", "Creeping Death"), ("7", "7"), ("u2", "One"), ("one metal", "One"),
        ("fur elise", "Für Elise"), ("さくら", "さくら"),
        ("naive", "Naïve"), ("strasse", "Straße"), ("luftbalons", "99 Luftballons"), ('"creep"* OR', "Creep"),
        ("homogenic", "Jóga"), ("'); DROP TABLE names; -- creep radiohead pablo honey", "Creep"),
    ],
)  # fmt: skip
def test_text_is_found_without_accents_with_errors_and_by_beginnings(
    songs: Shard, text: str, title: str
) -> None:
    found = songs.search(text, 3)
    assert songs.rows([found[0][0]])[0]["title"] == title
    assert all(0 < score <= 1 for _, score in found)


@pytest.mark.parametrize("text", ["zzz", "qqqq wwww", "'\"*"])
def test_nonsense_finds_nothing_unless_it_has_no_words(songs: Shard, text: str) -> None:
    assert len(songs.search(text, 5)) == (0 if text.isalnum() or " " in text else 5)


def test_appending_is_as_building_at_once(folders: dict[int, Path], tmp_path: Path) -> None:
    rows, vectors = described(SMALL), units(SMALL)
    first = made(tmp_path / "first", vectors[:250], rows[:250])
    grown = Shard(made(tmp_path / "grown", vectors[250:], rows[250:], before=first))
    whole = Shard(folders[SMALL])
    queries = units(20, seed=5)
    for mine, other in zip(grown.nearest(queries, 10), whole.nearest(queries, 10), strict=True):
        assert mine["label"].tolist() == other["label"].tolist()
        assert mine["title"].tolist() == other["title"].tolist()
    assert grown.rows(range(SMALL)) == whole.rows(range(SMALL))
    assert grown.search("song 260", 3) == whole.search("song 260", 3)
    assert grown.find(["a:10", "a:300"]) == {"a:10": 10, "a:300": 300}
