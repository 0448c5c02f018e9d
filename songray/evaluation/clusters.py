"""Clusters of vectors: do they agree with genres, and how many are there?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors

# scikit-learn is imported in functions: it loads in seconds, and --help imports this module.

MINIBATCH_TRACKS = 50_000  # beyond which k-means learns from batches
MEDOID_TRACKS = 5000  # of which medoids are computed, and silhouettes: their time is quadratic
MEDOID_STARTS = 5
MOST_CLUSTERS = 20
GENRE_TRACKS = 50  # of each genre, in the comparisons of Ross and Ramakrishnan's "song2vec"
MANY_GENRES = 10

Labels = NDArray[np.int32]


def cluster(vectors: Vectors, genres: Sequence[Sequence[str]]) -> dict[str, float]:
    """How well clusters, given only the number of genres, recover the first genre of each track that has one.

    V-measure (V) and adjusted mutual information (AMI) of k-means, of a Gaussian mixture with diagonal
    covariances, and of k-medoids by cosine and by Euclidean distance, by name. 1 is a perfect match; the
    expected value for random clusters is 0 for the AMI, and near 0 for the V-measure. Empty for fewer than
    two genres.
    """
    from sklearn.metrics import adjusted_mutual_info_score, v_measure_score
    from sklearn.mixture import GaussianMixture

    tagged = np.array([position for position, names in enumerate(genres) if names], np.int64)
    first = np.array([genres[position][0] for position in tagged])
    if (count := len(set(first.tolist()))) < 2:
        return {}
    vectors = vectors[tagged]
    cosines = vectors[:MEDOID_TRACKS] @ vectors[:MEDOID_TRACKS].T
    mixture = GaussianMixture(count, covariance_type="diag", reg_covar=1e-4, n_init=3, random_state=0)
    found = {
        "k-means": kmeans(vectors, count),
        "Gaussian mixture": mixture.fit(vectors[: 4 * MEDOID_TRACKS]).predict(vectors),
        "k-medoids, cosine": kmedoids(1 - cosines, count),
        "k-medoids, Euclidean": kmedoids(np.sqrt(np.maximum(2 - 2 * cosines, 0)), count),
    }
    scores: dict[str, float] = {"genres": count}
    for name, labels in found.items():
        truth = first[: len(labels)]
        scores[f"{name}: V"] = float(v_measure_score(truth, labels))
        scores[f"{name}: AMI"] = float(adjusted_mutual_info_score(truth, labels))
    return scores


def kmeans(vectors: Vectors, count: int) -> Labels:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(vectors) > MINIBATCH_TRACKS:
        model: Any = MiniBatchKMeans(count, n_init=10, batch_size=4096, random_state=0)
    else:
        model = KMeans(count, n_init=10, random_state=0)
    labels: Labels = model.fit_predict(vectors)
    return labels


def kmedoids(distances: Vectors, count: int) -> Labels:
    """The best of some random starts of alternating k-medoids (Park and Jun, 2009), by (tracks, tracks)."""
    best: tuple[float, Labels] | None = None
    for start in range(MEDOID_STARTS):
        medoids = np.random.default_rng(start).choice(len(distances), count, replace=False)
        while True:
            labels = distances[:, medoids].argmin(axis=1)
            members = [np.flatnonzero(labels == number) for number in range(count)]
            moved = np.array(
                [
                    own[distances[np.ix_(own, own)].sum(axis=0).argmin()] if own.size else medoid
                    for own, medoid in zip(members, medoids, strict=True)
                ]
            )
            if np.array_equal(moved, medoids):
                break
            medoids = moved
        cost = float(distances[:, medoids].min(axis=1).sum())
        if best is None or cost < best[0]:
            best = cost, labels.astype(np.int32)
    assert best is not None
    return best[1]


def genre_sets(genres: Sequence[Sequence[str]], runs: Mapping[str, Vectors]) -> dict[str, list[str]]:
    """The comparisons of "song2vec": the ten genres with the most tracks, and four of these, the two whose
    mean vectors have the largest cosine, on average over the runs, and the two that are the farthest from
    these and from each other."""
    counts = Counter(names[0] for names in genres if names)
    many = [name for name, count in counts.most_common(MANY_GENRES) if count > 1]
    if len(many) < 4:
        return {}
    sets = {f"{len(many)} genres": sorted(many)}
    cosines = np.mean([_cosines_of_means(vectors, genres, many) for vectors in runs.values()], axis=0)
    np.fill_diagonal(cosines, -np.inf)
    close = divmod(int(cosines.argmax()), len(many))
    others = [number for number in range(len(many)) if number not in close]
    np.fill_diagonal(cosines, 0)
    pairs = [(a, b) for a in others for b in others if a < b]
    far = min(pairs, key=lambda pair: cosines[np.ix_([*pair], [*close, *pair])].sum())
    return sets | {"4 genres": [many[number] for number in (*close, *far)]}


def cluster_sets(
    vectors: Vectors, genres: Sequence[Sequence[str]], sets: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """`cluster` of 50 tracks of each genre of some sets, by name of the set and of the score."""
    scores: dict[str, float] = {}
    for name, names in sets.items():
        positions = np.concatenate(
            [[p for p, own in enumerate(genres) if own and own[0] == genre][:GENRE_TRACKS] for genre in names]
        ).astype(np.int64)
        found = cluster(vectors[positions], [genres[position][:1] for position in positions])
        kept = ("k-means: V", "k-means: AMI", "Gaussian mixture: V", "Gaussian mixture: AMI")
        scores |= {f"{name}, {score}": found[score] for score in kept}
    return scores


def _cosines_of_means(vectors: Vectors, genres: Sequence[Sequence[str]], names: Sequence[str]) -> Vectors:
    means = np.stack(
        [vectors[[bool(own) and own[0] == name for own in genres]].mean(axis=0) for name in names]
    )
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    cosines: Vectors = means @ means.T
    return cosines


@dataclass(frozen=True)
class Counts:
    """K-means for each number of clusters k."""

    k: list[int]
    silhouette: list[float]  # mean silhouette coefficient, −1…1
    inertia: list[float]  # sum of squared distances to the centres

    @property
    def by_silhouette(self) -> int:
        return self.k[int(np.argmax(self.silhouette))]

    @property
    def by_elbow(self) -> int:
        """The k whose inertia is farthest below the line from the first to the last one (Satopää et al.,
        2011)."""
        x, y = (_to_unit_range(values) for values in (self.k, self.inertia))
        return self.k[int(np.argmax(1 - x - y))]


def count_clusters(vectors: Vectors) -> Counts | None:
    """On the first 5,000 tracks, for k from 2 to 20. None for fewer than 6 tracks."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    vectors = vectors[:MEDOID_TRACKS]
    ks = list(range(2, min(MOST_CLUSTERS, len(vectors) // 3) + 1))
    if not ks:
        return None
    models = [KMeans(k, n_init=3, random_state=0).fit(vectors) for k in ks]
    silhouettes = [float(silhouette_score(vectors, model.labels_)) for model in models]
    return Counts(ks, silhouettes, [float(model.inertia_) for model in models])


def _to_unit_range(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.array(values, float)
    scaled: NDArray[np.float64] = (array - array.min()) / max(float(np.ptp(array)), 1e-12)
    return scaled
