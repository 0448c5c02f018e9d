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
from tabulate import tabulate

from songray import runs
from songray.embeddings import matrix
from songray.library import REVISION_BITS, Library
from songray.runs import Vectors

ROWS_AT_ONCE = 1024

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluateConfig:
    runs: tuple[str, ...] = ()
    """Runs to compare; default: all that have embeddings."""
    neighbours: int = 10
    """Depth of the longer precision."""
    sample: int = 20_000
    """Tracks, drawn by the hash of their id, among which neighbours are sought."""


@dataclass(frozen=True)
class Score:
    """Of the tracks that share a label with another: how often their neighbours share it too."""

    label: str  # recording, artist or genre
    queries: int  # tracks that share one with another
    first: float  # share of them whose nearest neighbour does
    precision: float  # share among their k nearest, or among as many as share it, where these are fewer
    chance: float  # what `first` is among neighbours drawn by lot


LABELS: dict[str, Callable[[Row], frozenset[str]]] = {
    "recording": lambda track: frozenset([track["recording"]] if track["recording"] else []),
    "artist": lambda track: frozenset(track["artist_ids"]),
    "genre": lambda track: frozenset(track["genres"]),
}


@dataclass(frozen=True)
class Evaluation:
    """Scores of some runs, all judged on the same tracks."""

    tracks: int
    neighbours: int
    scores: dict[str, list[Score]]  # by run

    def __str__(self) -> str:
        """The table, in Markdown."""
        heads = ["run", "by", "tracks", "nearest", f"{self.neighbours} nearest", "chance"]
        rows = [
            [run, score.label, score.queries, score.first, score.precision, score.chance]
            for run, scores in self.scores.items()
            for score in scores
        ]
        return tabulate(rows, heads, tablefmt="github", floatfmt=".3f")


def evaluate(library: Library, config: EvaluateConfig) -> Evaluation:
    """Precision of retrieval by recording, artist and genre, exact, on the tracks that all runs embed.

    Memory and time: the sample squared, in pieces.
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
    scores = {}
    for (name, table), mine in zip(embedded.items(), keys[1:], strict=True):
        vectors = matrix(table["embedding"].take(pa.array(np.searchsorted(mine, common))))
        scores[name] = score(vectors, rows, config.neighbours)
    return Evaluation(common.size, config.neighbours, scores)


def score(vectors: Vectors, tracks: Sequence[Row], k: int) -> list[Score]:
    """Judge unit vectors, (tracks, dimension), by each label that at least two tracks share."""
    neighbours = nearest(vectors, min(k, len(vectors) - 1))
    scores = [_score(neighbours, name, [of(track) for track in tracks]) for name, of in LABELS.items()]
    return [score for score in scores if score.queries]


def nearest(vectors: Vectors, k: int) -> NDArray[np.int64]:
    """The k nearest others of each vector by cosine, nearest first, exactly: (tracks, k)."""
    found = []
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        cosines = vectors[start : start + ROWS_AT_ONCE] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        found.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


def _score(neighbours: NDArray[np.int64], name: str, labels: Sequence[frozenset[str]]) -> Score:
    members: dict[str, set[int]] = defaultdict(set)
    for number, several in enumerate(labels):
        for label in several:
            members[label].add(number)
    first, precision, chance = [], [], []
    for number, several in enumerate(labels):
        sharing = set().union(*(members[label] for label in several)) - {number}
        if sharing:
            hits = [int(other) in sharing for other in neighbours[number]]
            depth = min(len(sharing), len(hits))
            first.append(hits[0])
            precision.append(sum(hits[:depth]) / depth)
            chance.append(len(sharing) / (len(labels) - 1))
    if not first:
        return Score(name, 0, 0.0, 0.0, 0.0)
    return Score(name, len(first), *(float(np.mean(values)) for values in (first, precision, chance)))
