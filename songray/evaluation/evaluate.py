"""How good are the neighbours? Reads embeddings and tracks of any runs, returns a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, v_measure_score
from tabulate import tabulate

from songray.learning import runs
from songray.library import REVISION_BITS, Library, Vectors, matrix

ROWS_AT_ONCE = 1024
SHOWN = ("label", "queries", "first", "precision", "average_precision", "chance")

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluateConfig:
    runs: tuple[str, ...] = ()
    """Runs to compare; default: all that have embeddings."""
    neighbours: int = 10
    """Depth of the longer precision."""
    sample: int = 10_000
    """Tracks, drawn by the hash of their id, among which neighbours are sought."""


@dataclass(frozen=True)
class Score:
    """Of the tracks that share a label with another: how often their neighbours share it too."""

    label: str  # recording, artist or genre
    queries: int  # tracks that share one with another
    first: float  # share of them whose nearest neighbour does
    precision: float  # share among their k nearest, or among as many as share it, where these are fewer
    average_precision: float  # mean over the tracks: 1 where all that share it come before all others
    chance: float  # what `first` is among neighbours drawn by lot


LABELS: dict[str, Callable[[Row], frozenset[str]]] = {
    "recording": lambda track: frozenset([track["recording"]] if track["recording"] else []),
    "artist": lambda track: frozenset(track["artist_ids"]),
    "genre": lambda track: frozenset(track["genres"]),
}


@dataclass(frozen=True)
class Clusters:
    """How well k-means, told the number of genres alone, finds them: 1 is perfectly; 0 is by lot for the
    adjusted mutual information, and nearly so for the V-measure."""

    genres: int
    v_measure: float
    mutual_information: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of some runs, all judged on the same tracks."""

    tracks: int
    neighbours: int
    scores: dict[str, list[Score]]  # by run
    clusters: dict[str, Clusters]  # by run, where tracks have genres

    def __str__(self) -> str:
        """The tables, in Markdown."""
        heads = ["run", "by", "tracks", "nearest", f"{self.neighbours} nearest", "mAP", "chance"]
        rows = [
            [
                run,
                score.label,
                score.queries,
                score.first,
                score.precision,
                score.average_precision,
                score.chance,
            ]
            for run, scores in self.scores.items()
            for score in scores
        ]
        table: str = tabulate(rows, heads, tablefmt="github", floatfmt=".3f")
        if self.clusters:
            rows = [
                [run, found.genres, found.v_measure, found.mutual_information]
                for run, found in self.clusters.items()
            ]
            heads = ["run", "genres", "V-measure", "AMI"]
            table += f"\n\n{tabulate(rows, heads, tablefmt='github', floatfmt='.3f')}"
        return table


def evaluate(library: Library, config: EvaluateConfig) -> Evaluation:
    """Precision of retrieval by recording, artist and genre, exact, on the tracks that all runs embed.

    Time: the sample squared; memory: 4 bytes for each pair in it, 0.4 GB for 10,000 tracks.
    """
    tables = {name: library.table("embeddings", name) for name in config.runs or runs.finished(library)}
    embedded = {
        name: table.newest(["track_key", "embedding"]) for name, table in tables.items() if table.files()
    }
    if not embedded:
        raise ValueError("no run has embeddings: run jobs/embed.py first")
    tracks = library.table("tracks").newest(["track_key", "recording", "artist_ids", "genres"])
    keys = [table["track_key"].to_numpy() >> REVISION_BITS for table in (tracks, *embedded.values())]
    common = reduce(np.intersect1d, keys)[: config.sample]
    rows = tracks.take(pa.array(np.searchsorted(keys[0], common))).to_pylist()
    scores, clusters = {}, {}
    for (name, table), mine in zip(embedded.items(), keys[1:], strict=True):
        vectors = matrix(table["embedding"].take(pa.array(np.searchsorted(mine, common))))
        scores[name] = score(vectors, rows, config.neighbours)
        if (found := cluster(vectors, [track["genres"] for track in rows])) is not None:
            clusters[name] = found
    return Evaluation(common.size, config.neighbours, scores, clusters)


def score(vectors: Vectors, tracks: Sequence[Row], k: int) -> list[Score]:
    """Judge unit vectors, (tracks, dimension), by each label that at least two tracks share."""
    ranked = nearest(vectors, len(vectors) - 1)
    scores = [_score(ranked, name, [of(track) for track in tracks], k) for name, of in LABELS.items()]
    return [score for score in scores if score.queries]


def nearest(vectors: Vectors, k: int) -> NDArray[np.int32]:
    """The k nearest others of each vector by cosine, nearest first, exactly: (tracks, k)."""
    found = []
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        cosines = vectors[start : start + ROWS_AT_ONCE] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        found.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32))
    return np.concatenate(found)


def _score(ranked: NDArray[np.int32], name: str, labels: Sequence[frozenset[str]], k: int) -> Score:
    members: dict[str, set[int]] = defaultdict(set)
    for number, several in enumerate(labels):
        for label in several:
            members[label].add(number)
    first, precision, average, chance = [], [], [], []
    for number, several in enumerate(labels):
        sharing = set().union(*(members[label] for label in several)) - {number}
        if sharing:
            hits = np.isin(ranked[number], list(sharing))
            first.append(hits[0])
            precision.append(hits[: min(k, len(sharing))].mean())
            average.append((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
            chance.append(len(sharing) / (len(labels) - 1))
    if not first:
        return Score(name, 0, 0.0, 0.0, 0.0, 0.0)
    means = [float(np.mean(values)) for values in (first, precision, average, chance)]
    return Score(name, len(first), *means)


def cluster(vectors: Vectors, genres: Sequence[Sequence[str]]) -> Clusters | None:
    """Clusters of the tracks that have a genre, against the first one of each; None for fewer than two."""
    tagged = [number for number, several in enumerate(genres) if several]
    names = [genres[number][0] for number in tagged]
    count = len(set(names))
    if count < 2:
        return None
    found = KMeans(count, n_init=10, random_state=0).fit_predict(vectors[tagged])
    scores = (measure(names, found) for measure in (v_measure_score, adjusted_mutual_info_score))
    return Clusters(count, *map(float, scores))
