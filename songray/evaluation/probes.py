"""Probes: how well simple classifiers on frozen vectors tell genres and decades of artists that they have not
seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from songray.evaluation.intervals import Groups, Observations
from songray.library import Vectors

METRICS = {
    "logistic": "the share of the tracks whose most probable label by logistic regression is one of theirs",
    "neighbours": "the same by the labels of the 10 nearest tracks of other artists",
    "ranking": "label ranking average precision by logistic regression",
}
FOLDS = 5
MOST_LABELS = 20  # those of the most artists
LEAST_ARTISTS = FOLDS  # of a label, so that each fold's classifier may know it
MOST_TRACKS = 20_000
NEIGHBOURS = 10

Indicator = NDArray[np.bool_]  # (tracks, labels)


def probe(vectors: Vectors, labels: Sequence[Sequence[str]], artists: Groups) -> Observations | None:
    """Train on the tracks of four fifths of the artists, predict the labels of those of the others, in turn.

    A track with several labels counts once for each in training. `chance` is the share of the tracks with the
    label that is most frequent in training. None where fewer than two labels have five artists.
    """
    from sklearn.model_selection import GroupKFold

    names = frequent_labels(labels, artists)
    if len(names) < 2:
        return None
    indicator = np.array([[name in own for name in names] for own in labels[:MOST_TRACKS]])
    tracks = np.flatnonzero(indicator.any(axis=1))
    vectors, indicator, groups = vectors[tracks], indicator[tracks], artists[tracks]
    scores = {name: np.empty(indicator.shape) for name in ("logistic", "neighbours", "majority")}
    for train, test in GroupKFold(FOLDS).split(vectors, groups=groups):
        scores["logistic"][test] = _logistic(vectors[train], indicator[train], vectors[test])
        scores["neighbours"][test] = _neighbours(vectors[train], indicator[train], vectors[test])
        scores["majority"][test] = indicator[train].sum(axis=0)
    best = {name: _is_right(each, indicator) for name, each in scores.items()}
    values = {
        "logistic": best["logistic"],
        "neighbours": best["neighbours"],
        "ranking": _ranking(scores["logistic"], indicator),
    }
    return Observations(values, groups, float(best["majority"].mean()))


def frequent_labels(labels: Sequence[Sequence[str]], artists: Groups) -> list[str]:
    """The labels that a probe predicts: of those of five artists or more, the 20 of the most artists."""
    having: dict[str, set[int]] = defaultdict(set)
    for own, artist in zip(labels[:MOST_TRACKS], artists.tolist(), strict=False):
        for name in own:
            having[name].add(artist)
    frequent = [name for name, each in having.items() if len(each) >= LEAST_ARTISTS]
    return sorted(frequent, key=lambda name: (-len(having[name]), name))[:MOST_LABELS]


def _logistic(vectors: Vectors, indicator: Indicator, tests: Vectors) -> NDArray[np.float64]:
    """The probability of each label, (tests, labels). One scale for all numbers keeps the directions of most
    variance in front: with one for each, as many numbers as tracks would tell nothing."""
    from sklearn.linear_model import LogisticRegression

    row, label = np.nonzero(indicator)
    mean = vectors.mean(axis=0)
    deviation = max(float((vectors - mean).std()), 1e-9)
    model = LogisticRegression(tol=1e-3, max_iter=300)
    model.fit((vectors[row] - mean) / deviation, label)
    probabilities = np.zeros((len(tests), indicator.shape[1]))
    probabilities[:, model.classes_] = model.predict_proba((tests - mean) / deviation)
    return probabilities


def _neighbours(vectors: Vectors, indicator: Indicator, tests: Vectors) -> NDArray[np.float64]:
    """How many of the nearest training tracks have each label, (tests, labels); nearer ones decide ties."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(vectors))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute", metric="cosine").fit(vectors)
    nearest = indicator[search.kneighbors(tests, return_distance=False)]  # (tests, neighbours, labels)
    votes: NDArray[np.float64] = np.einsum("tnl,n->tl", nearest, 1 + 1e-3 * np.arange(count, 0, -1))
    return votes


def _is_right(scores: NDArray[np.float64], indicator: Indicator) -> NDArray[np.float64]:
    is_right: NDArray[np.float64] = indicator[np.arange(len(scores)), scores.argmax(axis=1)].astype(float)
    return is_right


def _ranking(scores: NDArray[np.float64], indicator: Indicator) -> NDArray[np.float64]:
    """The label ranking average precision of each track, as scikit-learn defines its mean."""
    values = np.zeros(len(scores))
    for label in range(indicator.shape[1]):
        rows = indicator[:, label]
        as_high = scores[rows] >= scores[rows, label][:, None]
        values[rows] += (as_high & indicator[rows]).sum(axis=1) / as_high.sum(axis=1)
    means: NDArray[np.float64] = values / indicator.sum(axis=1)
    return means
