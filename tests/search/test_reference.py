"""The axes of the map."""

from __future__ import annotations

import numpy as np
import pytest
from constructed import units

from songray.search.reference import Reference


def test_axes_are_the_directions_of_most_variance() -> None:
    vectors = units(300) * np.array([1, 9, 1, 1, 4, 1, 1, 1], np.float32)
    mean, axes = Reference(np.arange(300), vectors).axes()
    assert mean == pytest.approx(vectors.mean(axis=0))
    assert np.abs(axes).argmax(axis=0).tolist() == [1, 4]
    assert axes[1, 0] > 0 and axes[4, 1] > 0
