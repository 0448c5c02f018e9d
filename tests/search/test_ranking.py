"""Ranking on constructed spaces, with exact search."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from constructed import UNLIMITED, ExactSearcher, spaces, track_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from songray.errors import QueryError, UnknownTrack
from songray.search.ranking import (
    RankingOptions,
    Recommendation,
    Seed,
    nearest_to,
    recommend,
    similar,
    similarity,
)


async def neighbours(searcher: ExactSearcher, track_id: str, options: RankingOptions) -> list[Recommendation]:
    row, recommendations = await similar(searcher, track_id, options)
    assert row["track_id"] == track_id
    return recommendations


@given(spaces)
def test_neighbours_of_a_track_are_all_others_by_cosine(vectors: np.ndarray) -> None:
    searcher = ExactSearcher(vectors)
    cosines = searcher.units @ searcher.units[0]
    expected = [str(number) for number in np.argsort(-cosines, kind="stable") if number]
    assert track_ids(neighbours(searcher, "0", UNLIMITED)) == expected
    for item in asyncio.run(neighbours(searcher, "0", replace(UNLIMITED, k=3))):
        assert item.cosine == pytest.approx(cosines[int(item.track["track_id"])], abs=1e-6)
        assert (item.nearest_seed, item.nearest_seed_similarity) == ("0", item.similarity)


unit_floats = st.floats(-1, 1, width=32)


@given(unit_floats, unit_floats)
def test_similarity_increases_with_the_cosine(a: float, b: float) -> None:
    values = similarity(np.array([a, b], np.float32))
    assert values.dtype == np.float64 and (values >= 0).all() and (values <= 1).all()
    assert values == pytest.approx([(a + 1) / 2, (b + 1) / 2], abs=1e-15)
    if abs(a - b) > 1e-12:
        assert (values[0] < values[1]) == (a < b)


@given(spaces, st.integers(1, 3))
def test_without_diversity_similarity_never_rises_along_a_list(vectors: np.ndarray, likes: int) -> None:
    searcher = ExactSearcher(vectors)
    liked = [str(number) for number in range(min(likes, len(vectors)))]
    items = asyncio.run(recommend(searcher, [Seed(track_id) for track_id in liked], [], UNLIMITED))
    values = [item.similarity for item in items]
    assert values == sorted(values, reverse=True)
    for item in items:
        number = int(item.track["track_id"])
        assert item.similarity == similarity(np.float64(item.cosine))
        assert np.float32(item.cosine) == item.cosine  # exactly the value that was stored
        nearest = searcher.units[number] @ searcher.units[int(item.nearest_seed)]
        assert item.nearest_seed_similarity == pytest.approx(similarity(nearest), abs=1e-6)


def test_unknown_tracks_are_named_together() -> None:
    with pytest.raises(UnknownTrack, match="not in the index: 7, 9"):
        track_ids(recommend(ExactSearcher(np.eye(3)), [Seed("1"), Seed("7")], [Seed("9")], UNLIMITED))


def test_liked_seeds_are_added_and_unliked_ones_subtracted() -> None:
    bass, drums, voice = np.eye(3)
    searcher = ExactSearcher(
        np.array([bass + drums, drums, voice + drums, bass + voice, bass, voice, -drums])
    )
    # bass and drums, less drums, is bass
    assert track_ids(recommend(searcher, [Seed("0")], [Seed("1", 1 / 2**0.5)], UNLIMITED))[0] == "4"
    assert track_ids(recommend(searcher, [Seed("4"), Seed("5")], [], UNLIMITED))[0] == "3"
    heavier = track_ids(recommend(searcher, [Seed("4", 5.0), Seed("5")], [], UNLIMITED))
    assert heavier.index("0") < heavier.index("2")


@given(spaces, st.integers(1, 4))
def test_each_recommendation_names_its_nearest_seed(vectors: np.ndarray, likes: int) -> None:
    searcher = ExactSearcher(vectors)
    liked = [str(number) for number in range(min(likes, len(vectors)))]
    items = asyncio.run(recommend(searcher, [Seed(track_id) for track_id in liked], [], UNLIMITED))
    assert {item.track["track_id"] for item in items} == {str(n) for n in range(len(vectors))} - set(liked)
    for item in items:
        cosines = searcher.units[: len(liked)] @ searcher.units[int(item.track["track_id"])]
        assert cosines[int(item.nearest_seed)] == pytest.approx(cosines.max(), abs=1e-6)


@given(spaces, st.integers(1, 3), st.integers(1, 3), st.integers(0, 9), st.floats(0, 1))
def test_artists_and_albums_are_limited(
    vectors: np.ndarray, per_artist: int, per_album: int, seed: int, diversity: float
) -> None:
    random = np.random.default_rng(seed)
    artists, albums = random.integers(0, 4, len(vectors)), random.integers(0, 6, len(vectors))  # 0: unknown
    options = RankingOptions(k=1000, per_artist=per_artist, per_album=per_album, diversity=diversity)
    searcher = ExactSearcher(vectors, artist=artists, album=albums)
    chosen = [int(track_id) for track_id in track_ids(neighbours(searcher, "0", options))]
    of_artist, of_album = Counter(artists[chosen].tolist()), Counter(albums[chosen].tolist())
    assert all(count <= per_artist for artist, count in of_artist.items() if artist)
    assert all(count <= per_album for album, count in of_album.items() if album)
    for other in set(range(1, len(vectors))) - set(chosen):  # each is beyond a limit
        artist, album = int(artists[other]), int(albums[other])
        assert (artist and of_artist[artist] == per_artist) or (album and of_album[album] == per_album)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 8))
def test_k_are_returned_whenever_k_exist(seed: int, k: int) -> None:
    """Also where the nearest hundred are by one artist, ten ids of each of ten recordings."""
    random = np.random.default_rng(seed)
    near = random.normal(size=(100, 4)) * 0.1 + [5, 0, 0, 0]
    searcher = ExactSearcher(
        np.concatenate([near, random.normal(size=(10, 4))]),
        artist=[7] * 100 + [0] * 10,
        recording=[1 + number % 10 for number in range(100)] + [0] * 10,
    )
    assert len(track_ids(neighbours(searcher, "0", RankingOptions(k=k)))) == k


def test_a_recording_is_returned_once_and_never_that_of_the_seed() -> None:
    a, b, c = np.eye(3)
    vectors = np.array([a, a + 0.01 * b, a + 0.3 * b, a + 0.301 * b, a + 0.302 * b, a + c, a + 1.01 * c])
    # 1 is the seed under another id; 2, 3 and 4 sound the same and share a title, but 4 is a shorter edit;
    # 5 and 6 share an ISRC
    searcher = ExactSearcher(
        vectors,
        title=[9, 9, 5, 5, 5, 1, 2],
        duration=[200, 201, 180, 182, 120, 90, 300],
        recording=[0, 0, 0, 0, 0, 8, 8],
    )
    assert track_ids(neighbours(searcher, "0", UNLIMITED)) == ["2", "4", "5"]


def test_a_cover_of_the_same_length_is_another_recording() -> None:
    vectors = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    searcher = ExactSearcher(vectors, title=[3, 3, 3], duration=[200, 200, 200])
    assert track_ids(neighbours(searcher, "0", UNLIMITED)) == ["1", "2"]


@given(spaces)
def test_diversity_chooses_what_differs_from_those_before(vectors: np.ndarray) -> None:
    searcher = ExactSearcher(vectors)
    options = replace(UNLIMITED, diversity=1.0)
    chosen = [int(track_id) for track_id in track_ids(neighbours(searcher, "0", options))]
    for count in range(1, len(chosen)):  # the first is any: none precedes it
        highest = (searcher.units[chosen[count:]] @ searcher.units[chosen[:count]].T).max(axis=1)
        assert highest[0] == pytest.approx(highest.min(), abs=1e-5)


@pytest.mark.parametrize(
    ("like", "unlike"),
    [("0", "0"), ("0", "3"), ("01", ""), ("012", "2")],
    ids=["one track", "another id of it", "opposite tracks", "opposite tracks, and one track"],
)
def test_seeds_that_cancel_out_are_refused(like: str, unlike: str) -> None:
    searcher = ExactSearcher(np.array([[1, 0], [-1, 0], [0, 1], [1, 0.001]]))
    seeds = [[Seed(number) for number in numbers] for numbers in (like, unlike)]
    with pytest.raises(QueryError, match="cancel out"):
        asyncio.run(recommend(searcher, *seeds, UNLIMITED))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_without_a_direction_is_refused(value: float) -> None:
    searcher = ExactSearcher(np.eye(3))
    with pytest.raises(QueryError, match="cannot be compared"):
        asyncio.run(nearest_to(searcher, np.full(3, value, np.float32), UNLIMITED))
