"""How good are the neighbours? Reads embeddings and tracks of any runs, returns their scores."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from songray.evaluation.measure import EvaluateConfig, Measured, measure
from songray.evaluation.report import write_report
from songray.evaluation.scores import Evaluation, Score, compare, score
from songray.library import Library, Row
from songray.storage import storage_errors


def evaluate(library: Library, config: EvaluateConfig) -> Evaluation:
    """Measure what `config.parts` names, on the tracks that all runs embed, and write a report where a folder
    is named.

    Retrieval is exact: its time is that of the queries times the tracks, its memory at most about 1 GB. All
    else takes at most 10,000 or 20,000 of the tracks, as the modules say.
    """
    measured = measure(library, config)
    scores = {name: score(tasks) for name, tasks in measured.found.items()}
    if config.baseline:
        scores = compare(scores, measured.found, config.baseline)
    evaluation = Evaluation(
        len(measured.sample.rows),
        config.neighbours,
        scores,
        measured.facts,
        config.baseline,
        tuple(measured.remarks),
    )
    if config.output:
        folder = Path(config.output)
        write(evaluation, measured, folder)
        with measured.step("all runs", "figures"), storage_errors(str(folder)):
            write_report(library, measured, evaluation, folder / "report.html")
    return evaluation


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
