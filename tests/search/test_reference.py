"""Hubness and the axes of the map."""

from __future__ import annotations

import numpy as np
import pytest
from constructed import units

from songray.search.reference import Reference


def test_hubness_is_the_mean_cosine_to_the_nearest_of_the_reference_but_itself() -> None:
    vectors, keys = units(60), np.arange(60)
    hubness = Reference(keys[:20], vectors[:20]).hubness(keys, vectors)
    cosines = vectors @ vectors[:20].T
    cosines[np.arange(20), np.arange(20)] = -2
    assert hubness == pytest.approx(np.sort(cosines, axis=1)[:, -10:].mean(axis=1), abs=1e-5)
    assert Reference(keys[:1], vectors[:1]).hubness(keys[:1], vectors[:1]).tolist() == [0]


def test_axes_are_the_directions_of_most_variance() -> None:
    vectors = units(300) * np.array([1, 9, 1, 1, 4, 1, 1, 1], np.float32)
    mean, axes = Reference(np.arange(300), vectors).axes()
    assert mean == pytest.approx(vectors.mean(axis=0))
    assert np.abs(axes).argmax(axis=0).tolist() == [1, 4]
    assert axes[1, 0] > 0 and axes[4, 1] > 0
