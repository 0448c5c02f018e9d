"""Clusters of the tracks that a map is fitted to, by which it is coloured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors

MOST_CLUSTERS = 12
MEASURED_TRACKS = 1000  # whose silhouette is computed: its time is quadratic
UNKNOWN = -1

Clusters = NDArray[np.int16]  # (tracks,), from 0 on, or UNKNOWN


def clusters_of(vectors: Vectors) -> Clusters:
    """The k-means cluster of each unit vector, (tracks,), the largest one first; k, from 2 to 12, has the
    largest silhouette. Fewer than four different vectors are one cluster."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    different = len(np.unique(vectors, axis=0))
    best, labels = -np.inf, np.zeros(len(vectors), np.int64)
    for k in range(2, min(MOST_CLUSTERS, different - 1) + 1):
        candidate = KMeans(k, n_init=1, random_state=0).fit_predict(vectors)
        measured = slice(MEASURED_TRACKS)
        if len(np.unique(candidate[measured])) < 2:
            continue
        score = silhouette_score(vectors[measured], candidate[measured])
        if score > best:
            best, labels = score, candidate
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    clusters: Clusters = rank[inverse].astype(np.int16)
    return clusters


def nearest_cluster(vectors: Vectors, sample: Vectors, clusters: Clusters) -> Clusters:
    """The cluster whose mean is nearest to each vector, (rows,), given a sample and its clusters."""
    numbers = np.unique(clusters)
    means = np.stack([sample[clusters == number].mean(axis=0) for number in numbers])
    nearest: Clusters = numbers[(vectors @ means.T - (means**2).sum(axis=1) / 2).argmax(axis=1)]
    return nearest
