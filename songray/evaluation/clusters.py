"""Agreement of k-means clusters with genres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from songray.library import Vectors


@dataclass(frozen=True)
class Clusters:
    """How well k-means, given only the number of genres, recovers them. A value of 1 is a perfect match; the
    expected value for random clusters is 0 for the adjusted mutual information, and near 0 for the
    V-measure."""

    genres: int
    v_measure: float
    mutual_information: float  # adjusted for chance


def cluster(vectors: Vectors, genres: Sequence[Sequence[str]]) -> Clusters | None:
    """Compare clusters of the tracks that have a genre with the first genre of each. None for fewer than two
    genres."""
    from sklearn.cluster import KMeans  # loads in seconds, and --help imports this module
    from sklearn.metrics import adjusted_mutual_info_score, v_measure_score

    tagged = [position for position, names in enumerate(genres) if names]
    first_genres = [genres[position][0] for position in tagged]
    count = len(set(first_genres))
    if count < 2:
        return None
    labels = KMeans(count, n_init=10, random_state=0).fit_predict(vectors[tagged])
    scores = (metric(first_genres, labels) for metric in (v_measure_score, adjusted_mutual_info_score))
    return Clusters(count, *map(float, scores))
