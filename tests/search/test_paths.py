"""Paths and continuations on constructed spaces, with exact search."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from constructed import UNLIMITED, ExactSearcher, spaces, track_ids
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import NotEnoughTracks
from songray.search.filters import EVERYTHING
from songray.search.paths import Arc, path, playlist, start_similarities
from songray.search.ranking import Seed, similarity


@given(spaces, st.integers(2, 30))
def test_a_path_has_its_length_and_advances(vectors: np.ndarray, steps: int) -> None:
    searcher, last = ExactSearcher(vectors), len(vectors) - 1
    query = path(searcher, "0", str(last), steps, EVERYTHING)
    if steps > len(vectors):
        with pytest.raises(NotEnoughTracks, match=f"needs {steps - 2} tracks between its ends"):
            track_ids(query)
        return
    numbers = [int(track_id) for track_id in track_ids(query)]
    assert len(numbers) == len(set(numbers)) == steps and (numbers[0], numbers[-1]) == (0, last)
    fractions = Arc(searcher.units[0], searcher.units[last]).fractions(searcher.units[numbers])
    assert (np.diff(fractions[1:-1]) >= 0).all()


@pytest.mark.parametrize("degrees", [30, 120, 179])
def test_a_path_along_a_full_circle_is_even(degrees: int) -> None:
    """With a track at every degree, all steps have the same angle."""
    angles = np.radians(np.arange(360))
    searcher = ExactSearcher(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    numbers = [int(track_id) for track_id in track_ids(path(searcher, "0", str(degrees), 4, EVERYTHING))]
    assert np.abs(np.array(numbers) - np.linspace(0, degrees, 4)).max() <= 0.5


def test_a_path_between_opposite_or_equal_tracks_exists() -> None:
    circle = np.stack([np.cos(np.arange(0, 7, 0.5)), np.sin(np.arange(0, 7, 0.5))], axis=1)
    searcher = ExactSearcher(np.concatenate([[[1, 0], [-1, 0], [1, 0]], circle]))
    for end in ("1", "2"):
        assert len(set(track_ids(path(searcher, "0", end, 6, EVERYTHING)))) == 6


def test_similarities_to_the_start_follow_the_formula_of_recommendations() -> None:
    searcher = ExactSearcher(np.array([[1, 0], [1, 1], [0, 1]]))
    cosines = np.array([1, 0.5**0.5, 0])
    values = asyncio.run(start_similarities(searcher, ["0", "1", "2"]))
    assert values == pytest.approx(similarity(cosines), abs=1e-6)


def test_a_playlist_continues_from_its_last_track() -> None:
    angles = np.radians([0, 10, 50, 30, 20, 40])
    searcher = ExactSearcher(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert track_ids(playlist(searcher, [Seed("0"), Seed("1")], UNLIMITED)) == ["4", "3", "5", "2"]
