"""The scores of runs: means with intervals, differences from a baseline, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from songray.errors import StageFailed
from songray.evaluation import judgements, listeners, metrics, probes, robustness
from songray.evaluation.intervals import (
    LEAST_ARTISTS,
    Estimate,
    Groups,
    Observations,
    Values,
    estimate,
    holm,
    probability,
)

RANDOM, COLLABORATIVE, MUSLY = "random vectors", "collaborative factors", "musly, timbre"
REFERENCES = (RANDOM, COLLABORATIVE, MUSLY)  # rows that are no runs, beside which runs are seen
LEVEL = 0.05  # below which a probability tells two runs apart


@dataclass(frozen=True)
class Section:
    """Tasks that share metrics; each query of a task has a value of each metric."""

    tasks: tuple[str, ...]
    metrics: Mapping[str, str]  # name: what it is
    printed: tuple[str, ...]  # of the metrics
    compared: tuple[str, ...]  # of these, in sentences about two runs


PLAYLISTS = ("playlist-continuation", "playlist-continuation-of-frequent-tracks",
             "playlist-continuation-of-rare-tracks")  # fmt: skip
SECTIONS = {
    "retrieval": Section(
        tuple(task.name for task in metrics.TASKS),
        metrics.METRICS,
        ("nearest", "r_precision", "average_precision"),
        ("r_precision",),
    ),
    "probes": Section(
        tuple(f"{label}-probe" for label in ("genre", "decade", "tempo", "key", "mode")),
        probes.METRICS,
        tuple(probes.METRICS),
        ("logistic",),
    ),
    "listeners": Section(
        ("collaborative-neighbours", *PLAYLISTS),
        listeners.METRICS,
        tuple(listeners.METRICS),
        ("overlap", "r_precision"),
    ),
    "listening test": Section((judgements.TASK,), judgements.METRICS, tuple(judgements.METRICS), ()),
    "robustness": Section(
        tuple(robustness.CHANGES), robustness.METRICS, tuple(robustness.METRICS), ("itself",)
    ),
}
# Of each task and metric, as options name it.
NAMES = {
    f"{task} {metric}": (task, metric)
    for section in SECTIONS.values()
    for task in section.tasks
    for metric in section.metrics
}
LOWER_IS_BETTER = {"clicks"}


@dataclass(frozen=True)
class Difference:
    """A run compared with the baseline, by the same queries."""

    estimate: Estimate
    probability: float  # adjusted for the number of runs


@dataclass(frozen=True)
class Score:
    """How good the vectors of a run are in one task."""

    task: str
    queries: int
    chance: float | None  # expected value of the task's first metric
    metrics: dict[str, Estimate]
    differences: dict[str, Difference] = field(default_factory=dict)  # by metric


def metric_text(name: str) -> str:
    """The name of a metric as people write it."""
    return {"r_precision": "R-precision", "ndcg": "NDCG"}.get(name, name.replace("_", " "))


Facts = Mapping[str, float | str]  # by name


@dataclass(frozen=True)
class Evaluation:
    """Scores of some runs, all on the same tracks."""

    tracks: int
    neighbours: int
    scores: dict[str, list[Score]]  # by run
    facts: dict[str, dict[str, Facts]] = field(default_factory=dict)  # by section and run
    baseline: str = ""
    remarks: tuple[str, ...] = ()  # what could not be computed, and why

    def __str__(self) -> str:
        """The tables in Markdown, or why there are none."""
        parts = [text for name in SECTIONS if (text := self.table(name))]
        if not parts:
            names = dict.fromkeys(task.label for task in metrics.TASKS if not task.without)
            labels = f"{', '.join(list(names)[:-1])} or {list(names)[-1]}"
            parts.append(
                f"evaluate: no two of the {self.tracks} tracks share a known {labels}, so there is no score"
            )
        elif not any(
            value.low for one in self.every_score() for value in one.metrics.values() if value.low is not None
        ):
            parts.append(f"no intervals: fewer than {LEAST_ARTISTS} artists have two of the tracks")
        parts += [f"{section}:\n\n{fact_table(by_run)}" for section, by_run in self.facts.items()]
        parts += ["\n".join(lines) for lines in (list(self.verdicts()), self.remarks) if lines]
        return "\n\n".join(parts)

    def every_score(self) -> Iterator[Score]:
        for scores in self.scores.values():
            yield from scores

    def table(self, section: str) -> str:
        """The printed scores of a section in Markdown, or ""."""
        shared = SECTIONS[section]
        rows = [
            [run, one.task.replace("-", " "), one.queries, "" if one.chance is None else f"{one.chance:.3f}",
             *(one.metrics[name].text() if name in one.metrics else "" for name in shared.printed)]
            for run, scores in self.scores.items()
            for one in scores
            if one.task in shared.tasks
        ]  # fmt: skip
        heads = ["run", "by", "queries", "chance", *(metric_text(name) for name in shared.printed)]
        return str(tabulate(rows, heads, tablefmt="github", disable_numparse=True)) if rows else ""

    def verdicts(self) -> Iterator[str]:
        """A sentence for each run beside the baseline and each section, on the metrics that it compares."""
        for run, scores in self.scores.items():
            for name, section in SECTIONS.items():
                found = [one for one in scores if one.task in section.tasks and one.differences]
                if clauses := _verdict(found, section):
                    yield f"{run} beside {self.baseline}, {name}: {clauses}"

    def check(self, name: str, least: float) -> None:
        """Raise StageFailed where the difference of a run from the baseline, in a metric of NAMES, may lie
        below the least one, and where there is too little to say so."""
        task, metric = NAMES[name]
        for run, scores in self.scores.items():
            if run in (self.baseline, *REFERENCES):
                continue
            found = next(
                (one.differences[metric].estimate for one in scores if one.task == task and one.differences),
                None,
            )
            if found is None or found.low is None:
                raise StageFailed(f"{run}: too few tracks or artists for an interval of {name}")
            if found.low < least:
                raise StageFailed(
                    f"{run}: {name} differs from that of {self.baseline} by {found.text('+')}, and the lower "
                    f"bound is below {least:g}"
                )


def _verdict(scores: list[Score], section: Section) -> str:
    """The clauses of a sentence; "" where nothing was compared."""
    found: dict[str, list[str]] = {"is better on": [], "is worse on": [], "cannot be told apart on": []}
    for one in scores:
        for name in section.compared:
            if (change := one.differences.get(name)) is None:
                continue
            text = f"{metric_text(name)} by {one.task.replace('-', ' ')}"
            if change.probability >= LEVEL:
                found["cannot be told apart on"].append(text)
            else:
                is_better = (change.estimate.mean > 0) != (name in LOWER_IS_BETTER)
                value = change.estimate.text("+")
                verb = "is better on" if is_better else "is worse on"
                found[verb].append(f"{text} {value}, p = {change.probability:.4f}")
    return ", and ".join(f"{verb} {'; '.join(texts)}" for verb, texts in found.items() if texts)


def fact_table(by_run: Mapping[str, Facts]) -> str:
    """Facts in Markdown, a row for each run."""
    names = list(dict.fromkeys(name for facts in by_run.values() for name in facts))
    rows = [[run, *(fact_text(facts.get(name, "")) for name in names)] for run, facts in by_run.items()]
    return str(tabulate(rows, ["run", *names], tablefmt="github", disable_numparse=True))


def fact_text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def score(found: Mapping[str, Observations]) -> list[Score]:
    """The means and intervals of a run, by its tasks."""
    return [
        Score(
            task,
            each.groups.size,
            each.chance,
            {name: _bounded(name, values, each.groups) for name, values in each.values.items()},
        )
        for task, each in found.items()
    ]


def _bounded(metric: str, values: Values, groups: Groups) -> Estimate:
    """An estimate whose interval has no values that the metric cannot have."""
    found = estimate(values, groups)
    if found.low is None or found.high is None or metric in LOWER_IS_BETTER:
        return found
    least = 0.0 if values.min() >= 0 else -1.0  # of a share, or of a cosine
    return Estimate(found.mean, max(found.low, least), min(found.high, 1.0))


def compare(
    scores: dict[str, list[Score]], found: Mapping[str, Mapping[str, Observations]], baseline: str
) -> dict[str, list[Score]]:
    """The scores with their differences from the baseline. Runs that have a task have the same queries."""
    differences: dict[tuple[str, str], dict[str, Difference]] = {}
    for task, reference in found[baseline].items():
        if not any(section.compared for section in SECTIONS.values() if task in section.tasks):
            continue
        others = [run for run in scores if run not in (baseline, *REFERENCES) and task in found[run]]
        for metric, values in reference.values.items():
            changes = [found[run][task].values[metric] - values for run in others]
            adjusted = holm([probability(change, reference.groups) for change in changes])
            for run, change, value in zip(others, changes, adjusted, strict=True):
                difference = Difference(estimate(change, reference.groups), value)
                differences.setdefault((run, task), {})[metric] = difference
    return {
        run: [replace(one, differences=differences.get((run, one.task), {})) for one in each]
        for run, each in scores.items()
    }
