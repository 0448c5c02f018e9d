"""Spaces whose properties are known."""

from __future__ import annotations

import numpy as np
import pytest
from known_vectors import unit

from songray.evaluation.space import k_occurrence, nearest_cosines, reduced, space
from songray.library import Vectors
from songray.search.maps import METHODS, faithfulness, positions_of


def on_sphere(count: int, dimension: int, numbers: int = 0) -> Vectors:
    """Random points on a sphere, within a space of more numbers."""
    points = unit(np.random.default_rng(0).normal(size=(count, dimension)))
    return np.pad(points, ((0, 0), (0, max(0, numbers - dimension))))


@pytest.mark.parametrize("dimension", [3, 6])
def test_the_dimension_is_that_of_the_sphere(dimension: int) -> None:
    found = space(on_sphere(4000, dimension, 40))
    assert found["intrinsic dimension"] == pytest.approx(dimension - 1, rel=0.15)
    assert found["effective rank"] == pytest.approx(dimension, rel=0.05)
    assert abs(found["mean cosine"]) < 0.02


def test_vectors_in_a_cone_are_not_isotropic() -> None:
    every = on_sphere(2000, 8)
    cone = unit(every + 3 * np.eye(8)[0])
    assert space(every)["isotropy"] > 0.9 and space(cone)["isotropy"] < 0.3
    assert space(cone)["mean cosine"] > 0.8


def test_a_hub_is_a_neighbour_of_all_and_an_orphan_of_none() -> None:
    """The hub lies between the others, which are orthogonal to each other."""
    others = np.eye(30, dtype=np.float32)
    hub = unit(others.sum(axis=0, keepdims=True))
    cosines, neighbours = nearest_cosines(np.concatenate([others, hub]), 1)
    assert (neighbours[:-1] == 30).all() and np.allclose(cosines[:-1, 0], 30**-0.5, atol=1e-6)
    occurrence = k_occurrence(neighbours)
    assert occurrence[30] == 30 and (occurrence == 0).sum() == 29
    assert space(unit(np.random.default_rng(0).normal(size=(500, 300))))["hubness"] > 0.2


def test_copies_are_near_duplicates() -> None:
    points = on_sphere(200, 20)
    assert space(points)["near-duplicates"] == 0
    assert space(np.concatenate([points, points]))["near-duplicates"] == 1


def test_long_vectors_keep_their_cosines_when_they_are_reduced() -> None:
    points = on_sphere(300, 20, 900)
    assert reduced(points).shape == (300, 300)
    assert np.allclose(reduced(points) @ reduced(points).T, points @ points.T, atol=1e-4)
    assert reduced(points[:, :20]) is not None and reduced(points[:, :20]).shape == (300, 20)


@pytest.mark.slow
def test_maps_keep_neighbours_and_say_so() -> None:
    """A flat space is mapped faithfully; no map of eight dimensions is."""
    flat = unit(
        np.pad(np.random.default_rng(0).uniform(-0.3, 0.3, (400, 2)), ((0, 0), (0, 1)), constant_values=1)
    )
    for method in METHODS:
        positions = positions_of(flat, method)
        assert positions.shape == (400, 2)
        assert np.array_equal(positions, positions_of(flat, method))
        assert faithfulness(flat, positions).trustworthiness > 0.95
        assert faithfulness(flat, positions).continuity > 0.95
    assert faithfulness(on_sphere(400, 8), positions_of(on_sphere(400, 8), "pca")).trustworthiness < 0.8
