"""How good are the neighbours? Reads embeddings and tracks of any runs, returns a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from tabulate import tabulate

from songray.errors import InvalidOption, MissingInput
from songray.evaluation.clusters import Clusters, cluster
from songray.evaluation.metrics import LABELS, Score, score
from songray.keys import REVISION_BITS, Keys
from songray.learning import runs
from songray.library import Library, matrix
from songray.table import Table


@dataclass(frozen=True)
class EvaluateConfig:
    runs: tuple[str, ...] = ()
    """Runs to compare; by default all runs that have embeddings."""
    neighbours: int = 10
    """Depth of the precision beside that of the nearest neighbour."""
    sample: int = 10_000
    """The most tracks to compare, a random sample by the hash of their ids."""

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("sample", 2)):
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} is {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class Evaluation:
    """Scores of some runs, all on the same tracks."""

    tracks: int
    neighbours: int
    scores: dict[str, list[Score]]  # by run
    clusters: dict[str, Clusters]  # by run, where tracks have genres

    def __str__(self) -> str:
        """The tables in Markdown, or why there are none."""
        tables = [self._retrieval()] if any(self.scores.values()) else []
        if self.clusters:
            tables.append(self._clusters())
        if tables:
            return "\n\n".join(tables)
        labels = f"{', '.join(list(LABELS)[:-1])} or {list(LABELS)[-1]}"
        return f"evaluate: no two of the {self.tracks} tracks share a known {labels}, so there is no score"

    def _retrieval(self) -> str:
        heads = ["run", "by", "tracks", "nearest", f"{self.neighbours} nearest", "mAP", "chance"]
        rows = [
            [run, s.label, s.queries, s.first, s.precision, s.average_precision, s.chance]
            for run, scores in self.scores.items()
            for s in scores
        ]
        return str(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))

    def _clusters(self) -> str:
        rows = [[run, c.genres, c.v_measure, c.mutual_information] for run, c in self.clusters.items()]
        heads = ["run", "genres", "V-measure", "AMI"]
        return str(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))


def evaluate(library: Library, config: EvaluateConfig) -> Evaluation:
    """Precision of retrieval by recording, artist and genre, exact, on the tracks that all runs embed.

    Time: quadratic in the sample; memory: 4 bytes for each pair of it, 0.4 GB for 10,000 tracks.
    """
    tables = {name: library.table("embeddings", name) for name in config.runs or runs.finished(library)}
    tables = {name: table for name, table in tables.items() if table.files()}
    if not tables:
        raise MissingInput("no run has embeddings: run `songray embed` first")
    tracks = library.table("tracks")
    common = sample_tracks([tracks, *tables.values()], config.sample)
    if common.size < 2:
        raise MissingInput(f"{common.size} tracks have embeddings of all runs: run `songray embed` for each")
    sample = tracks.newest_rows(common, ["recording", "artist_ids", "genres"]).to_pylist()
    scores, clusters = {}, {}
    for name, table in tables.items():
        vectors = matrix(table.newest_rows(common, ["embedding"])["embedding"])
        scores[name] = score(vectors, sample, config.neighbours)
        if (agreement := cluster(vectors, [track["genres"] for track in sample])) is not None:
            clusters[name] = agreement
    return Evaluation(common.size, config.neighbours, scores, clusters)


def sample_tracks(tables: Sequence[Table], most: int) -> Keys:
    """The lowest numbers of tracks that all tables have, sorted. They are hashes: a random sample."""
    indexes = [table.key_index() for table in tables]
    finest = max(indexes, key=lambda index: len(index.intervals))
    common = np.empty(0, np.int64)
    for interval in finest.intervals:
        newest = (
            table.newest_between(index, interval, ["track_key"]).rows["track_key"].to_numpy() >> REVISION_BITS
            for table, index in zip(tables, indexes, strict=True)
        )
        common = np.append(common, reduce(np.intersect1d, newest))
        if common.size >= most:
            break
    return common[:most]
