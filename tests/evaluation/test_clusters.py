"""Clusters of vectors whose classes are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_vectors import around, unit
from sklearn.metrics import adjusted_mutual_info_score

from songray.evaluation.clusters import cluster, cluster_sets, count_clusters, genre_sets, kmedoids

METHODS = ("k-means", "Gaussian mixture", "k-medoids, cosine", "k-medoids, Euclidean")


def names(codes: np.ndarray) -> list[list[str]]:
    return [[f"g{code}"] for code in codes]


def test_clusters_agree_with_separate_genres_and_not_with_random_ones() -> None:
    random = np.random.default_rng(0)
    genres = [[f"g{number % 3}"] for number in range(90)] + [[]]
    apart = unit(np.eye(3)[np.arange(91) % 3] + random.normal(0, 0.05, (91, 3)))
    found = cluster(apart, genres)
    assert found["genres"] == 3
    assert all(found[f"{method}: V"] == pytest.approx(1) for method in METHODS)
    assert all(found[f"{method}: AMI"] == pytest.approx(1) for method in METHODS)
    at_random = cluster(unit(random.normal(size=(91, 3))), genres)
    assert all(abs(at_random[f"{method}: AMI"]) < 0.15 for method in METHODS)
    assert cluster(apart, [["g"]] * 91) == {}


@settings(max_examples=20)
@given(st.integers(2, 5), st.integers(0, 99))
def test_medoids_are_nearer_to_their_tracks_than_other_medoids(count: int, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(40, 4)))
    distances = 1 - vectors @ vectors.T
    labels = kmedoids(distances, count)
    assert len(np.unique(labels)) <= count and len(labels) == 40
    medoids = [
        own[distances[np.ix_(own, own)].sum(axis=0).argmin()]
        for own in (np.flatnonzero(labels == number) for number in np.unique(labels))
    ]
    costs = distances[:, medoids]
    assert np.allclose(costs.min(axis=1), costs[np.arange(40), np.unique(labels, return_inverse=True)[1]])


def test_the_number_of_clusters_is_that_of_the_classes() -> None:
    classes = np.arange(300) % 6
    found = count_clusters(around(classes, 0.15))
    assert found is not None and found.by_silhouette == 6 and abs(found.by_elbow - 6) <= 1
    assert count_clusters(around(classes, 0.1)[:5]) is None


def test_of_four_genres_two_are_close_and_two_are_far() -> None:
    """Genres 1 and 2 are neighbours on a circle; 4 and 5 lie opposite."""
    codes = np.arange(360) % 6
    degrees = np.radians(np.array([130, 90, 100, 60, 250, 310]))[codes]
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    sets = genre_sets(names(codes), {"run": vectors})
    assert len(sets["6 genres"]) == 6
    assert set(sets["4 genres"][:2]) == {"g1", "g2"} and set(sets["4 genres"][2:]) == {"g4", "g5"}
    scores = cluster_sets(around(codes, 0.05), names(codes), sets)
    assert scores["4 genres, k-means: AMI"] == pytest.approx(1)
    assert genre_sets(names(codes % 3), {"run": vectors}) == {}


def test_permuted_labels_have_no_mutual_information() -> None:
    classes = np.arange(200) % 4
    vectors, random = around(classes, 0.2), np.random.default_rng(0)
    values = [cluster(vectors, names(random.permutation(classes)))["k-means: AMI"] for _ in range(10)]
    assert abs(np.mean(values)) < 0.02
    assert adjusted_mutual_info_score(classes, classes) == 1
