"""How good are the neighbours? Reads embeddings and tracks of any runs, returns their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from songray.errors import InvalidOption, MissingInput
from songray.evaluation.clusters import cluster
from songray.evaluation.metrics import retrieval
from songray.evaluation.scores import NAMES, Evaluation, Score, artists_of, compare, score
from songray.keys import REVISION_BITS, Keys
from songray.learning import runs
from songray.library import Library, Row, matrix
from songray.storage import storage_errors
from songray.table import Table

DEFAULT_METRIC = "artist r_precision"
COLUMNS = ["recording", "album_id", "artist_ids", "genres"]


@dataclass(frozen=True)
class EvaluateConfig:
    runs: tuple[str, ...] = ()
    """Runs to compare; by default all runs that have embeddings."""
    neighbours: int = 10
    """The k of the precision and the NDCG of the k nearest."""
    sample: int = 10_000
    """The most tracks to compare, a random sample by the hash of their ids."""
    baseline: str = ""
    """Run with which each other one is compared, by paired tests over artists."""
    metric: str = DEFAULT_METRIC
    """Task and metric of --fail-below, such as "artist r_precision" or "genre-without-artist nearest"."""
    fail_below: float | None = None
    """Exit with an error where the lower bound of a run's difference from the baseline is below this."""
    output: str = ""
    """Folder for the report: report.json, and scores.parquet with a row for each run, task and metric."""

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("sample", 2)):
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} is {getattr(self, name)}: must be at least {least}")
        if self.metric not in NAMES:
            raise InvalidOption(f"--metric {self.metric!r}: choose from {', '.join(NAMES)}")
        if self.fail_below is not None and not self.baseline:
            raise InvalidOption("--fail-below needs a --baseline")


def evaluate(library: Library, config: EvaluateConfig) -> Evaluation:
    """Precision of retrieval by recording, album, artist and genre, exact, on the tracks that all runs embed.

    Time: quadratic in the sample; memory: a few hundred bytes for each track of it and each of its queries
    that are ranked at once.
    """
    tables = {name: library.table("embeddings", name) for name in config.runs or runs.finished(library)}
    tables = {name: table for name, table in tables.items() if table.files()}
    if not tables:
        raise MissingInput("no run has embeddings: run `songray embed` first")
    if config.baseline and config.baseline not in tables:
        raise InvalidOption(f"--baseline {config.baseline}: the runs to compare are {', '.join(tables)}")
    tracks = library.table("tracks")
    common = sample_tracks([tracks, *tables.values()], config.sample)
    if common.size < 2:
        raise MissingInput(f"{common.size} tracks have embeddings of all runs: run `songray embed` for each")
    sample = tracks.newest_rows(common, COLUMNS).to_pylist()
    artists, found, clusters = artists_of(sample), {}, {}
    for name, table in tables.items():
        vectors = matrix(table.newest_rows(common, ["embedding"])["embedding"])
        found[name] = retrieval(vectors, sample, config.neighbours)
        if (agreement := cluster(vectors, [track["genres"] for track in sample])) is not None:
            clusters[name] = agreement
    scores = {name: score(tasks, artists) for name, tasks in found.items()}
    if config.baseline:
        scores = compare(scores, found, config.baseline, artists)
    evaluation = Evaluation(common.size, config.neighbours, scores, clusters, config.baseline)
    if config.output:
        write(evaluation, Path(config.output))
    return evaluation


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


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write scores.parquet, a row for each run, task and metric, and report.json, the same with clusters."""
    rows = [
        {
            "run": run,
            "label": one.task.label,
            "without": one.task.without,
            "queries": one.queries,
            "chance": one.chance,
            "metric": name,
            **vars(value),
            **_difference(one, name),
        }
        for run, scores in evaluation.scores.items()
        for one in scores
        for name, value in one.metrics.items()
    ]
    report = {
        "tracks": evaluation.tracks,
        "neighbours": evaluation.neighbours,
        "baseline": evaluation.baseline,
        "scores": rows,
        "clusters": {run: vars(found) for run, found in evaluation.clusters.items()},
    }
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
        (folder / "report.json").write_text(json.dumps(report, indent=2))


def _difference(one: Score, metric: str) -> Row:
    if (found := one.differences.get(metric)) is None:
        return dict.fromkeys(("difference", "difference_low", "difference_high", "p"))
    named = {f"difference_{bound}": getattr(found.estimate, bound) for bound in ("low", "high")}
    return {"difference": found.estimate.mean, **named, "p": found.probability}
