"""The scores of runs: means with intervals, differences from a baseline, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tabulate import tabulate

from songray.errors import StageFailed
from songray.evaluation.clusters import Clusters
from songray.evaluation.intervals import LEAST_ARTISTS, Estimate, Groups, estimate, holm, probability
from songray.evaluation.metrics import LABELS, METRICS, TASKS, Retrieval, Task
from songray.library import Row

PRINTED = ("nearest", "r_precision", "average_precision")
# Of each task and metric, as options name it.
NAMES = {f"{task.name} {metric}": (task, metric) for task in TASKS for metric in METRICS}
LEVEL = 0.05  # below which a probability tells two runs apart


@dataclass(frozen=True)
class Difference:
    """A run compared with the baseline, by the same queries."""

    estimate: Estimate
    probability: float  # adjusted for the number of runs


@dataclass(frozen=True)
class Score:
    """How good the neighbours of a run are in one task."""

    task: Task
    queries: int  # tracks that have a relevant one
    chance: float
    metrics: dict[str, Estimate]
    differences: dict[str, Difference] = field(default_factory=dict)  # by metric


@dataclass(frozen=True)
class Evaluation:
    """Scores of some runs, all on the same tracks."""

    tracks: int
    neighbours: int
    scores: dict[str, list[Score]]  # by run
    clusters: dict[str, Clusters]  # by run, where tracks have genres
    baseline: str = ""

    def __str__(self) -> str:
        """The tables in Markdown, or why there are none."""
        if not any(self.scores.values()):
            labels = f"{', '.join(list(LABELS)[:-1])} or {list(LABELS)[-1]}"
            return (
                f"evaluate: no two of the {self.tracks} tracks share a known {labels}, so there is no score"
            )
        parts = [self._retrieval()]
        if all(one.metrics[PRINTED[0]].low is None for scores in self.scores.values() for one in scores):
            parts.append(f"no intervals: fewer than {LEAST_ARTISTS} artists have two of the tracks")
        if self.clusters:
            parts.append(self._clusters())
        if verdicts := list(self.verdicts()):
            parts.append("\n".join(verdicts))
        return "\n\n".join(parts)

    def _retrieval(self) -> str:
        heads = ["run", "by", "tracks", "chance", *(name.replace("_", " ") for name in PRINTED)]
        rows = [
            [run, one.task, one.queries, one.chance, *(one.metrics[name].text() for name in PRINTED)]
            for run, scores in self.scores.items()
            for one in scores
        ]
        return str(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))

    def _clusters(self) -> str:
        rows = [[run, c.genres, c.v_measure, c.mutual_information] for run, c in self.clusters.items()]
        heads = ["run", "genres", "V-measure", "AMI"]
        return str(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))

    def verdicts(self) -> Iterator[str]:
        """A sentence for each run beside the baseline, on the metrics that are printed."""
        for run, scores in self.scores.items():
            found: dict[str, list[str]] = {
                "is better on": [],
                "is worse on": [],
                "cannot be told apart on": [],
            }
            for one in scores:
                for name in PRINTED if one.differences else ():
                    change, text = one.differences[name], f"{name.replace('_', ' ')} by {one.task}"
                    if change.probability >= LEVEL:
                        found["cannot be told apart on"].append(text)
                    else:
                        verb = "is better on" if change.estimate.mean > 0 else "is worse on"
                        value = change.estimate.text("+")
                        found[verb].append(f"{text} {value}, p = {change.probability:.4f}")
            if any(found.values()):
                clauses = [f"{verb} {'; '.join(texts)}" for verb, texts in found.items() if texts]
                yield f"{run} beside {self.baseline}: {', and '.join(clauses)}"

    def check(self, name: str, least: float) -> None:
        """Raise StageFailed where the difference of a run from the baseline, in a metric of NAMES, may lie
        below the least one, and where there is too little to say so."""
        task, metric = NAMES[name]
        for run, scores in self.scores.items():
            if run == self.baseline:
                continue
            found = next((one.differences[metric].estimate for one in scores if one.task == task), None)
            if found is None or found.low is None:
                raise StageFailed(f"{run}: too few tracks or artists for an interval of {name}")
            if found.low < least:
                raise StageFailed(
                    f"{run}: {name} differs from that of {self.baseline} by {found.text('+')}, and the lower "
                    f"bound is below {least:g}"
                )


def artists_of(tracks: Sequence[Row]) -> Groups:
    """The first artist of each track as a number; a track without one is an artist of its own."""
    names = [(track["artist_ids"] or [f"\0{position}"])[0] for position, track in enumerate(tracks)]
    groups: Groups = np.unique(names, return_inverse=True)[1]
    return groups


def score(tasks: dict[Task, Retrieval], artists: Groups) -> list[Score]:
    """The means and intervals of a run."""
    return [
        Score(
            task,
            found.queries.size,
            found.chance,
            {name: estimate(values, artists[found.queries]) for name, values in found.values.items()},
        )
        for task, found in tasks.items()
    ]


def compare(
    scores: dict[str, list[Score]], found: dict[str, dict[Task, Retrieval]], baseline: str, artists: Groups
) -> dict[str, list[Score]]:
    """The scores with their differences from the baseline. All runs have the same queries."""
    others = [run for run in scores if run != baseline]
    differences: dict[tuple[str, Task, str], Difference] = {}
    for task, reference in found[baseline].items():
        groups = artists[reference.queries]
        for metric in METRICS:
            changes = [found[run][task].values[metric] - reference.values[metric] for run in others]
            adjusted = holm([probability(change, groups) for change in changes])
            for run, change, value in zip(others, changes, adjusted, strict=True):
                differences[run, task, metric] = Difference(estimate(change, groups), value)
    return {
        run: [
            one if run == baseline else replace(one, differences=_of(differences, run, one.task))
            for one in each
        ]
        for run, each in scores.items()
    }


def _of(found: dict[tuple[str, Task, str], Difference], run: str, task: Task) -> dict[str, Difference]:
    return {metric: found[run, task, metric] for metric in METRICS}
