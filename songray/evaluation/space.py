"""The space of a run's vectors: hubs and orphans, near-duplicates, isotropy and dimension."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from songray.learning.scale import unit
from songray.library import Vectors

OCCURRENCE_K = 10
MOST_TRACKS = 10_000  # whose neighbours are searched exactly: the time is quadratic
NEAR_DUPLICATE = 0.99  # cosine from which two tracks count as near-duplicates
PAIRS = 100_000
MOST_NUMBERS = 512  # of a vector


def space(vectors: Vectors) -> dict[str, float]:
    """Properties of unit vectors, (tracks, dimension), by name.

    hubness: the skewness of the k-occurrence at 10, in how many tracks' ten nearest each track is
    (Radovanović et al., 2010). orphans: the share of tracks that are in none. near-duplicates: the share with
    a neighbour of cosine 0.99 or more. isotropy: the partition function's least value over its largest one,
    over the principal directions (Mu and Viswanath, 2018); 1 where vectors point everywhere. mean cosine: of
    random pairs. intrinsic dimension: by the ratio of the distances to the two nearest (Facco et al., 2017),
    as its maximum-likelihood estimate. effective rank: (Σλ)² / Σλ² of the covariance.
    """
    cosines, neighbours = nearest_cosines(vectors[:MOST_TRACKS], OCCURRENCE_K)
    return {
        **hubness(neighbours),
        "near-duplicates": float((cosines[:, 0] >= NEAR_DUPLICATE).mean()),
        "mean cosine": _mean_cosine(vectors),
        "isotropy": isotropy(vectors),
        "intrinsic dimension": intrinsic_dimension(cosines),
        "effective rank": _effective_rank(vectors),
    }


def reduced(vectors: Vectors) -> Vectors:
    """The vectors, or where they are longer than 512 numbers, their projections to so many principal
    directions, uncentred: these keep most of all cosines, and what follows takes seconds instead of hours."""
    from sklearn.utils.extmath import randomized_svd

    if vectors.shape[1] <= MOST_NUMBERS:
        return vectors
    count = min(MOST_NUMBERS, len(vectors))
    _, _, directions = randomized_svd(vectors[:MOST_TRACKS], count, n_iter=4, random_state=0)
    return unit(vectors @ directions.T)


def nearest_cosines(vectors: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """The cosines of the k nearest other vectors of each, descending, and their positions: (tracks, k)
    each."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k, len(vectors) - 1), algorithm="brute", metric="cosine")
    distances, neighbours = search.fit(vectors).kneighbors()
    return 1 - distances, neighbours


def k_occurrence(neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """In how many rows of neighbours each track is: (tracks,)."""
    return np.bincount(neighbours.ravel(), minlength=len(neighbours))


def hubness(neighbours: NDArray[np.int64]) -> dict[str, float]:
    """The facts that follow from the nearest of each track, (tracks, k)."""
    from scipy.stats import skew

    occurrence = k_occurrence(neighbours)
    skewness = float(skew(occurrence)) if np.ptp(occurrence) else 0.0
    return {"hubness": skewness, "orphans": float((occurrence == 0).mean())}


def isotropy(vectors: Vectors) -> float:
    """In 0…1."""
    _, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    partition = np.exp(vectors @ np.concatenate([directions, -directions], axis=1)).sum(axis=0)
    return float(partition.min() / partition.max())


def intrinsic_dimension(cosines: Vectors) -> float:
    """From the cosines of each track's two nearest ones. Copies, whose distance is 0, are left out; NaN where
    nothing else is left."""
    distances = np.sqrt(np.maximum(2 - 2 * cosines[:, :2].astype(np.float64), 0))
    if distances.shape[1] < 2:
        return float("nan")
    distances = distances[distances[:, 0] > 1e-3]
    ratios = np.log(distances[:, 1] / distances[:, 0])
    return float(len(ratios) / ratios.sum()) if ratios.sum() > 0 else float("nan")


def _mean_cosine(vectors: Vectors) -> float:
    random = np.random.default_rng(0)
    left = random.integers(0, len(vectors), PAIRS)
    right = (left + random.integers(1, len(vectors), PAIRS)) % len(vectors)
    return float(np.einsum("ij,ij->i", vectors[left], vectors[right]).mean())


def _effective_rank(vectors: Vectors) -> float:
    values = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)).reshape(vectors.shape[1], -1))
    return float(values.sum() ** 2 / (values**2).sum()) if values.any() else 0.0
