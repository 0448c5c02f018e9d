"""Intervals and tests over artists, on values whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from songray.evaluation.intervals import LEAST_ARTISTS, estimate, holm, probability

TRUTH = 0.5


def simulated(random: np.random.Generator, artists: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of queries and their artists, whose own rates differ widely, and who have 2 to some 20 tracks."""
    sizes = 1 + random.geometric(0.25, artists)
    groups = np.repeat(np.arange(artists), sizes)
    return random.binomial(1, random.beta(0.8, 0.8, artists)[groups]).astype(float), groups


@pytest.mark.parametrize("artists", [30, 100, 300])
def test_the_interval_covers_the_truth_as_often_as_it_says(artists: int) -> None:
    random, covered = np.random.default_rng(artists), 0
    for _ in range(2000):
        found = estimate(*simulated(random, artists))
        assert found.low is not None and found.high is not None
        covered += found.low <= TRUTH <= found.high
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize("artists", [30, 100])
def test_equal_runs_are_told_apart_as_rarely_as_the_level_says(artists: int) -> None:
    random, told_apart = np.random.default_rng(artists), 0
    for _ in range(400):
        first, groups = simulated(random, artists)
        shift = random.normal(0, 0.3, artists)[groups]
        told_apart += probability(shift + random.normal(0, 0.1, first.size), groups) < 0.05
    assert told_apart / 400 < 0.08


def test_the_interval_of_one_query_an_artist_is_that_of_students_t() -> None:
    values = np.random.default_rng(0).normal(size=40)
    groups = np.arange(20)
    means = values.reshape(20, 2).mean(axis=1)
    low, high = scipy.stats.t.interval(0.95, 19, means.mean(), scipy.stats.sem(means))
    found = estimate(values, np.repeat(groups, 2))
    assert (found.mean, found.low, found.high) == pytest.approx((means.mean(), low, high))


def test_few_artists_with_two_queries_give_no_interval() -> None:
    values, groups = np.ones(3 * LEAST_ARTISTS), np.repeat(np.arange(LEAST_ARTISTS), 3)
    assert estimate(values, groups).low is not None
    groups[:3] = [90, 91, 92]
    assert estimate(values, groups).low is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_adjusted_probabilities_keep_their_order_and_are_not_smaller(probabilities: list[float]) -> None:
    adjusted = holm(probabilities)
    assert all(after >= before for after, before in zip(adjusted, probabilities, strict=True))
    assert min(adjusted) == pytest.approx(min(1, min(probabilities) * len(probabilities)))
    order = np.argsort(probabilities, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
