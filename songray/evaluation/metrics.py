"""Precision of retrieval: do the nearest neighbours of a track share its recording, artist or genre?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from songray.library import Row, Vectors

ROWS_AT_ONCE = 1024  # queries whose cosines are in memory together


@dataclass(frozen=True)
class Score:
    """How often the neighbours of the tracks that share a label share it too."""

    label: str  # recording, artist or genre
    queries: int  # tracks that share the label with another track
    first: float  # share of the queries whose nearest neighbour shares it
    precision: float  # share among the k nearest, or among as many as share it where these are fewer
    average_precision: float  # mean over the queries: 1 where all that share it are ranked before all others
    chance: float  # expected value of `first` for randomly ordered neighbours


LABELS: dict[str, Callable[[Row], frozenset[str]]] = {
    "recording": lambda track: frozenset([track["recording"]] if track["recording"] else []),
    "artist": lambda track: frozenset(track["artist_ids"]),
    "genre": lambda track: frozenset(track["genres"]),
}


def score(vectors: Vectors, tracks: Sequence[Row], k: int) -> list[Score]:
    """The scores of unit vectors, (tracks, dimension), by each label that at least two tracks share."""
    ranked = nearest(vectors, len(vectors) - 1)
    scores = [_score(ranked, name, [label(track) for track in tracks], k) for name, label in LABELS.items()]
    return [score for score in scores if score.queries]


def nearest(vectors: Vectors, k: int) -> NDArray[np.int32]:
    """The k nearest other vectors of each vector by cosine, exactly, in descending order: (tracks, k)."""
    ranked = []
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        cosines = vectors[start : start + ROWS_AT_ONCE] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        ranked.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32))
    return np.concatenate(ranked)


def _score(ranked: NDArray[np.int32], name: str, labels: Sequence[frozenset[str]], k: int) -> Score:
    members: dict[str, set[int]] = defaultdict(set)
    for position, values in enumerate(labels):
        for value in values:
            members[value].add(position)
    first, precision, average, chance = [], [], [], []
    for position, values in enumerate(labels):
        sharing = set().union(*(members[value] for value in values)) - {position}
        if sharing:
            hits = np.isin(ranked[position], list(sharing))
            first.append(hits[0])
            precision.append(hits[: min(k, len(sharing))].mean())
            average.append((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
            chance.append(len(sharing) / (len(labels) - 1))
    if not first:
        return Score(name, 0, 0.0, 0.0, 0.0, 0.0)
    means = [float(np.mean(values)) for values in (first, precision, average, chance)]
    return Score(name, len(first), *means)
