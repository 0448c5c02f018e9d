"""Retrieval: do the nearest neighbours of a track share its recording, album, artist or genre?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from songray.library import Row, Vectors

ROWS_AT_ONCE = 512  # queries whose cosines are in memory together, at most
CELLS_AT_ONCE = 1 << 24  # cosines that are in memory together, at most: about 40 bytes each

Matrix = NDArray[np.bool_]  # (queries, tracks)
Values = NDArray[np.float64]  # (queries,)
Ranking = tuple[NDArray[np.int64], NDArray[np.int32]]  # queries; all tracks, nearest first, (queries, tracks)
Part = tuple[NDArray[np.int64], Values, dict[str, Values]]  # queries, their chance, and their metrics


class Task(NamedTuple):
    """Relevant are the tracks that share a label with the query; those that share `without` are left out."""

    label: str
    without: str = ""

    @property
    def name(self) -> str:
        return f"{self.label}-without-{self.without}" if self.without else self.label

    def __str__(self) -> str:
        return self.name.replace("-", " ")


LABELS: dict[str, Callable[[Row], frozenset[str]]] = {
    "recording": lambda track: frozenset([track["recording"]] if track["recording"] else []),
    "album": lambda track: frozenset([track["album_id"]] if track["album_id"] else []),
    "artist": lambda track: frozenset(track["artist_ids"]),
    "genre": lambda track: frozenset(track["genres"]),
    "related-artist": lambda track: frozenset(track.get("related") or []),  # see Sample.read
}
# By genre, neighbours of the same artist say more of the artist than of the genre (Pampalk et al., 2005).
TASKS = (
    Task("recording"),
    Task("album"),
    Task("artist"),
    Task("artist", "recording"),
    Task("artist", "album"),
    Task("genre"),
    Task("genre", "artist"),
    Task("related-artist", "artist"),
)
METRICS = {
    "nearest": "the share of the queries whose nearest neighbour is relevant",
    "precision": "the share of the k nearest that is relevant, or of as many as are where these are fewer",
    "r_precision": "the share that is relevant of the r nearest, where r tracks are relevant",
    "ndcg": "normalised discounted cumulative gain of the k nearest",
    "average_precision": "mean of the precision at each relevant track",
}


@dataclass(frozen=True)
class Retrieval:
    """The values of a task: one for each query that has a relevant track."""

    queries: NDArray[np.int64]  # positions of the tracks
    values: dict[str, Values]  # by metric
    chance: float  # expected value of `nearest` and `r_precision` for randomly ordered neighbours


def nearest(vectors: Vectors, k: int) -> NDArray[np.int32]:
    """The k nearest other vectors of each vector by cosine, exactly, in descending order: (tracks, k)."""
    return np.concatenate([ranked[:, :k] for _, ranked in rankings(vectors, len(vectors))])


def rankings(vectors: Vectors, queries: int) -> Iterator[Ranking]:
    """For some of the first queries at a time, their positions, and all tracks by their cosine to each, the
    query itself last."""
    rows = max(1, min(ROWS_AT_ONCE, CELLS_AT_ONCE // max(1, len(vectors))))
    for start in range(0, min(queries, len(vectors)), rows):
        stop = min(start + rows, queries, len(vectors))
        yield ranking(vectors[start:stop] @ vectors.T, start)


def ranking(similarities: Vectors, start: int) -> Ranking:
    """The positions of the queries that begin at `start`, and all tracks by their similarities to each,
    (queries, tracks), the query itself last."""
    queries = np.arange(start, start + len(similarities))
    similarities[np.arange(len(queries)), queries] = -np.inf
    return queries, np.argsort(-similarities, axis=1, kind="stable").astype(np.int32)


def retrieval(
    vectors: Vectors, tracks: Sequence[Row], k: int, queries: int | None = None
) -> dict[Task, Retrieval]:
    """The values of unit vectors, (tracks, dimension), in each task that has a query. A task that leaves
    tracks out is given where it differs from the same without that. All tracks are searched; the queries are
    the first ones, by default all."""
    return score_rankings(rankings(vectors, len(vectors) if queries is None else queries), tracks, k)


def score_rankings(ranked_queries: Iterable[Ranking], tracks: Sequence[Row], k: int) -> dict[Task, Retrieval]:
    """As `retrieval`, of queries whose tracks are ranked already."""
    sharing = {label: _Sharing([of(track) for track in tracks]) for label, of in LABELS.items()}
    parts: dict[Task, list[Part]] = {task: [] for task in TASKS}
    has_effect = dict.fromkeys(TASKS, False)
    for query, ranked in ranked_queries:
        same = {label: shares.between(query, ranked) for label, shares in sharing.items()}
        for task in TASKS:
            is_left_out = same[task.without] if task.without else np.zeros(ranked.shape, bool)
            is_variant = task.without and Task(task.label) in TASKS
            has_effect[task] |= not is_variant or bool((is_left_out & same[task.label]).any())
            is_candidate = ~is_left_out
            is_candidate[:, -1] = False  # the query itself
            is_relevant = same[task.label] & is_candidate
            is_query = is_relevant.any(axis=1)
            chance = is_relevant.sum(axis=1)[is_query] / is_candidate.sum(axis=1)[is_query]
            values = metrics(is_relevant[is_query], is_candidate[is_query], k)
            parts[task].append((query[is_query], chance, values))
    results = {}
    for task, each in parts.items():
        positions = np.concatenate([part[0] for part in each])
        if positions.size and has_effect[task]:
            values = {name: np.concatenate([part[2][name] for part in each]) for name in METRICS}
            chance = float(np.concatenate([part[1] for part in each]).mean())
            results[task] = Retrieval(positions, values, chance)
    return results


class _Sharing:
    """Which tracks share a label."""

    def __init__(self, labels: Sequence[frozenset[str]]) -> None:
        from scipy.sparse import csr_array

        number = {name: position for position, name in enumerate(sorted(frozenset().union(*labels)))}
        columns = [number[name] for names in labels for name in names]
        ends = np.cumsum([0, *map(len, labels)])
        self._has = csr_array((np.ones(len(columns), np.float32), columns, ends), (len(labels), len(number)))

    def between(self, queries: NDArray[np.int64], ranked: NDArray[np.int32]) -> Matrix:
        """Whether each query shares a label with each of its ranked tracks."""
        same = (self._has[queries] @ self._has.T).toarray() > 0
        shared: Matrix = np.take_along_axis(same, ranked, axis=1)
        return shared


def metrics(is_relevant: Matrix, is_candidate: Matrix, k: int) -> dict[str, Values]:
    """The metrics of queries, (queries,) each, by their ranked tracks, of which some are no candidates. Each
    has at least one relevant track."""
    query, place = np.nonzero(is_relevant)
    rank = is_candidate.cumsum(axis=1, dtype=np.int32)[query, place]  # among the candidates, from 1
    relevant = np.bincount(query)
    found = np.arange(1, len(query) + 1) - np.repeat(np.cumsum(relevant) - relevant, relevant)

    def share_of_first(count: NDArray[np.int64]) -> Values:
        within: Values = np.bincount(query, rank <= count[query]) / count
        return within

    gains = np.bincount(query, np.where(rank <= k, 1 / np.log2(rank + 1), 0))
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(relevant, k) - 1]
    return {
        "nearest": share_of_first(np.ones_like(relevant)),
        "precision": share_of_first(np.minimum(relevant, k)),
        "r_precision": share_of_first(relevant),
        "ndcg": gains / ideal,
        "average_precision": np.bincount(query, found / rank) / relevant,
    }
