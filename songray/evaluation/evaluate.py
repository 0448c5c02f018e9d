"""How good are the neighbours? Reads embeddings and tracks of any runs, returns their scores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from songray.errors import InvalidOption, MissingInput
from songray.evaluation.measure import PARTS, Measured, Part, Scope, measure
from songray.evaluation.report import write_report
from songray.evaluation.sample import Sample
from songray.evaluation.scores import NAMES, SECTIONS, Evaluation, Score, compare, score
from songray.learning import runs
from songray.learning.runs import ADAPTATION
from songray.library import Library, Row, matrix
from songray.storage import storage_errors
from songray.table import Table

DEFAULT_METRIC = "artist r_precision"


@dataclass(frozen=True)
class EvaluateConfig:
    runs: tuple[str, ...] = ()
    """Runs to compare; by default all runs that have embeddings."""
    parts: tuple[Part, ...] = ()
    """What to measure, and whether to make a page of it (figures, which needs --output). By default it is
    retrieval, or everything where --output names a folder."""
    neighbours: int = 10
    """The k of the precision and the NDCG of the k nearest."""
    sample: int = 10_000
    """The most tracks to compare, a random sample by the hash of their ids."""
    queries: int = 5_000
    """The most tracks of the sample whose neighbours among all of it are ranked, for retrieval."""
    changed: int = 40
    """Number of tracks whose changed audio is embedded, for robustness."""
    judgements: tuple[str, ...] = ()
    """Files of judgements that the page offers where it cannot store them, beside those of the library."""
    baseline: str = ""
    """Run with which each other one is compared, by paired tests over artists."""
    metric: str = DEFAULT_METRIC
    """Task and metric of --fail-below, such as "artist r_precision" or "genre-without-artist nearest"."""
    fail_below: float | None = None
    """Exit with an error where the lower bound of a run's difference from the baseline is below this."""
    output: str = ""
    """Folder for report.html, report.json, and scores.parquet with a row for each run, task and metric."""

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("sample", 2), ("queries", 1), ("changed", 1)):
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} is {getattr(self, name)}: must be at least {least}")
        if self.metric not in NAMES:
            raise InvalidOption(f"--metric {self.metric!r}: choose from {', '.join(NAMES)}")
        if self.fail_below is not None and not self.baseline:
            raise InvalidOption("--fail-below needs a --baseline")
        part = next(name for name, section in SECTIONS.items() if NAMES[self.metric][0] in section.tasks)
        if self.fail_below is not None and part not in self.scope.parts:
            raise InvalidOption(f"--metric {self.metric!r} is not measured: add {part} to --parts")
        if "figures" in self.parts and not self.output:
            raise InvalidOption("--parts figures needs a folder: give --output")

    @property
    def scope(self) -> Scope:
        parts = self.parts or (PARTS if self.output else PARTS[:1])
        return Scope(parts, self.neighbours, self.queries, self.changed, self.judgements)


def evaluate(library: Library, config: EvaluateConfig) -> Evaluation:
    """Measure what `config.parts` names, on the tracks that all runs embed, and write a report where a folder
    is named.

    Retrieval is exact: its time is that of the queries times the tracks, its memory at most about 1 GB. All
    else takes at most 10,000 or 20,000 of the tracks, as the modules say.
    """
    tables = embedded(library, config)
    sample = Sample.read(library, list(tables.values()), config.sample)
    if len(sample.rows) < 2:
        raise MissingInput(
            f"{len(sample.rows)} tracks have embeddings of all runs: run `songray embed` for each"
        )
    vectors = {
        name: matrix(table.newest_rows(sample.tracks, ["embedding"])["embedding"])
        for name, table in tables.items()
    }
    measured = measure(library, sample, vectors, config.scope)
    scores = {name: score(tasks) for name, tasks in measured.found.items()}
    if config.baseline:
        scores = compare(scores, measured.found, config.baseline)
    evaluation = Evaluation(
        len(measured.sample.rows),
        config.neighbours,
        scores,
        measured.facts,
        config.baseline,
        (*measured.remarks, *fitted_to_artists(library, tables)),
    )
    if config.output:
        folder = Path(config.output)
        write(evaluation, measured, folder)
        if "figures" in config.scope.parts:
            with measured.step("all runs", "figures"), storage_errors(str(folder)):
                write_report(library, measured, evaluation, folder / "report.html")
    return evaluation


def embedded(library: Library, config: EvaluateConfig) -> dict[str, Table]:
    """The embeddings of each run. Raises MissingInput where there are none, InvalidOption where the baseline
    is not among them."""
    tables = {name: library.table("embeddings", name) for name in config.runs or runs.finished(library)}
    tables = {name: table for name, table in tables.items() if table.files()}
    if not tables:
        raise MissingInput("no run has embeddings: run `songray embed` first")
    if config.baseline and config.baseline not in tables:
        raise InvalidOption(f"--baseline {config.baseline}: the runs to compare are {', '.join(tables)}")
    return tables


def fitted_to_artists(library: Library, names: Iterable[str]) -> list[str]:
    """A sentence for each run that has learned from the labels on which it is measured."""
    return [
        f"{name} was fitted to the artists of this library: what it scores here says nothing of others; "
        "`songray train adaptation` measures it on artists that are held out"
        for name in names
        if (run := runs.find(library, name)) is not None and run.model == ADAPTATION
    ]


def write(evaluation: Evaluation, measured: Measured, folder: Path) -> None:
    """Write scores.parquet, a row for each run, task and metric, and report.json, the same with all else."""
    rows = [
        {
            "run": run,
            "task": one.task,
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
        "facts": evaluation.facts,
        "remarks": evaluation.remarks,
        "steps": [vars(step) for step in measured.steps],
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
