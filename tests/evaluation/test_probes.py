"""Probes on vectors that say all, or nothing, of the labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_vectors import around
from sklearn.metrics import label_ranking_average_precision_score

from songray.evaluation.probes import MOST_LABELS, _ranking, frequent_labels, probe

ARTISTS = np.arange(120) % 30
GENRES = ARTISTS % 3  # an artist has one genre


def labels(codes: np.ndarray) -> list[list[str]]:
    return [[f"g{code}"] for code in codes]


def test_separate_genres_are_told_for_artists_that_were_not_seen() -> None:
    found = probe(around(GENRES, 0.1), labels(GENRES), ARTISTS)
    assert found is not None and set(np.unique(found.groups)) == set(range(30))
    assert all(values.mean() == 1 for values in found.values.values())
    assert found.chance == pytest.approx(1 / 3, abs=0.1)


def test_vectors_of_artists_alone_tell_nothing_of_genres() -> None:
    """Each artist is a cluster of its own, so that a probe that saw its tracks would be right."""
    random = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 10))
    found = probe(around(ARTISTS, 0.05), labels(random[ARTISTS]), ARTISTS)
    assert found is not None
    assert found.values["logistic"].mean() < 0.6 and found.values["neighbours"].mean() < 0.6


def test_labels_of_few_artists_are_not_predicted() -> None:
    own = [["common", *(["rare"] if artist < 4 else [])] for artist in ARTISTS.tolist()]
    assert frequent_labels(own, ARTISTS) == ["common"]
    assert probe(around(GENRES, 0.1), own, ARTISTS) is None
    many = [[f"g{number % 40}"] for number in range(400)]
    assert len(frequent_labels(many, np.arange(400))) == MOST_LABELS


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 99))
def test_the_ranking_is_that_of_scikit_learn(count: int, tracks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    indicator = random.random((tracks, count)) < 0.4
    indicator[np.arange(tracks), random.integers(0, count, tracks)] = True
    scores = random.integers(0, 4, (tracks, count)) / 4.0  # with ties
    expected = label_ranking_average_precision_score(indicator, scores)
    assert _ranking(scores, indicator).mean() == pytest.approx(expected)
