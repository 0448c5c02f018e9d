"""Intervals of means over queries, and paired tests; the artists of the queries are what is sampled.

Queries of one artist are alike, so that each artist is one observation. The interval is Student's t, with one
degree of freedom less than there are artists, on the linearised ratio of the sums of the artists' values to
their numbers of queries (Cochran, Sampling Techniques, 1977, section 6.3). From 30 artists on it covers as
often as it says (tests/evaluation/test_intervals.py); with fewer, less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_ARTISTS = 10  # with two queries or more, or one each; fewer give no interval
LEVEL = 0.95
PERMUTATIONS = 10_000

Values = NDArray[np.float64]
Groups = NDArray[np.int64]  # the artist of each query, or its playlist, as a number


@dataclass(frozen=True)
class Observations:
    """What a task gives for each of its queries."""

    values: dict[str, Values]  # by metric, (queries,) each
    groups: Groups
    chance: float | None = None  # expected value of the first metric where vectors say nothing


@dataclass(frozen=True)
class Estimate:
    """A mean, and its interval where there are enough artists."""

    mean: float
    low: float | None = None
    high: float | None = None

    def text(self, sign: str = "") -> str:
        if self.low is None:
            return f"{self.mean:{sign}.3f}"
        return f"{self.mean:{sign}.3f} ({self.low:{sign}.3f}…{self.high:{sign}.3f})"


def estimate(values: Values, groups: Groups) -> Estimate:
    """The mean of values of queries, with the interval that holds it with a probability of LEVEL."""
    from scipy.stats import t

    mean = float(values.mean())
    sums, sizes = _by_group(values, groups)
    if (sizes > (sizes.max() > 1)).sum() < LEAST_ARTISTS:
        return Estimate(mean)
    residuals = (sums - mean * sizes) / sizes.mean()
    error = np.sqrt((residuals**2).sum() / (len(sizes) * (len(sizes) - 1)))
    half = float(t.ppf((1 + LEVEL) / 2, len(sizes) - 1) * error)
    return Estimate(mean, mean - half, mean + half)


def probability(differences: Values, groups: Groups) -> float:
    """The probability of a mean difference at least as large, in either direction, where the sign of all
    differences of an artist were random: a permutation test of paired values."""
    sums, _ = _by_group(differences, groups)
    random = np.random.default_rng(0)
    signs = random.integers(0, 2, (PERMUTATIONS, len(sums)), np.int8) * 2 - 1
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) * (1 - 1e-12)
    return float((1 + as_large.sum()) / (1 + PERMUTATIONS))


def holm(probabilities: Sequence[float]) -> list[float]:
    """The probabilities of several tests, adjusted for their number (Holm, 1979)."""
    order = np.argsort(probabilities)
    factors = len(order) - np.arange(len(order))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.array(probabilities)[order] * factors), 1)
    return [float(value) for value in adjusted]


def _by_group(values: Values, groups: Groups) -> tuple[Values, Values]:
    """The sum and the number of the values of each group."""
    _, position = np.unique(groups, return_inverse=True)
    sums: Values = np.bincount(position, values).astype(float)
    return sums, np.bincount(position).astype(float)
