"""Clusters by which a map is coloured."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.library import Vectors
from songray.search.clusters import clusters_of, nearest_cluster
from songray.search.reference import Reference


def around(centres: int, each: int) -> Vectors:
    """Unit vectors, (centres × each, 16), around orthogonal centres, those of one after the other."""
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(16)[:centres], each, axis=0) + 0.05 * random.normal(size=(centres * each, 16))
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.mark.parametrize("centres", [2, 5, 12])
def test_clusters_are_those_that_there_are(centres: int) -> None:
    clusters = clusters_of(around(centres, 30)).reshape(centres, 30)
    assert (clusters == clusters[:, :1]).all() and len(set(clusters[:, 0].tolist())) == centres


def test_the_largest_cluster_is_the_first() -> None:
    vectors = around(3, 30)[[*range(5), *range(30, 60), *range(60, 75)]]
    clusters = clusters_of(vectors)
    assert np.bincount(clusters).tolist() == [30, 15, 5]


@given(st.integers(1, 12), st.integers(1, 3))
def test_any_number_of_vectors_has_clusters(count: int, different: int) -> None:
    vectors = np.eye(4, dtype=np.float32)[np.arange(count) % different]
    clusters = clusters_of(vectors)
    assert clusters.shape == (count,) and set(clusters) <= set(range(12)) and 0 in clusters


def test_other_vectors_have_the_cluster_of_the_nearest_mean() -> None:
    vectors = around(5, 40)
    sample, rest = vectors[::2], vectors[1::2]
    clusters = clusters_of(sample)
    assert (nearest_cluster(rest, sample, clusters) == clusters).all()
    reference = Reference(np.arange(len(sample)), sample, sample[:, :2], clusters)
    again = Reference.from_array(np.load(BytesIO(reference.to_bytes())))
    assert (again.cluster(rest) == clusters).all()
    assert (Reference(np.arange(2), sample[:2]).cluster(rest) == -1).all()
