"""Writes the report of an evaluation as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from songray.evaluation import figures, judgements
from songray.evaluation.material import Material
from songray.evaluation.measure import Measured
from songray.evaluation.parts import Figure, Table
from songray.evaluation.scores import LEVEL, SECTIONS, Evaluation, Score, metric_text
from songray.evaluation.seeds import Seed, seeds
from songray.learning.runs import software_versions
from songray.library import Library
from songray.search.maps import METHODS

TEMPLATE = Path(__file__).with_name("report.html")
PARAGRAPHS = {
    "retrieval": "Do the nearest neighbours of a track share its recording, album, artist or genre? Where "
    "the same artist is left out, its tracks are neither relevant nor ranked: genre figures without this say "
    "more of artists than of genres.",
    "probes": "Simple classifiers on the frozen vectors, trained on four fifths of the artists and tested on "
    "the others, in turn. Probes and retrieval order models differently.",
    "listeners": "Do neighbours by sound agree with playlists, and do they continue them? A playlist is "
    "continued by the mean vector of its first half; of three playlists one is continued, and the others are "
    "known. Clicks are better the fewer.",
    "listening test": "Listeners heard the nearest tracks by two runs, without names, and chose the better "
    "list. Each session of a listener is one observation.",
    "robustness": "The audio of some tracks is changed and embedded anew: is the original still the nearest?",
}
FIGURES = {  # of a section, its tasks and the metric that is plotted
    "retrieval": (
        "r_precision",
        ("artist", "genre-without-artist", "related-artist-without-artist", "album", "recording"),
    ),
    "listening test": ("preferred", (judgements.TASK,)),
    "probes": ("logistic", SECTIONS["probes"].tasks),
    "listeners": ("r_precision", ("playlist-continuation",)),
    "robustness": ("cosine", SECTIONS["robustness"].tasks),
}
FACTS = {
    "clusters": "Clusters against the first genre of each track, given only the number of genres.",
    "genre sets": "The same for 50 tracks of each of some genres; of the four genres two are the closest and "
    "two the farthest.",
    "numbers of clusters": "How many clusters k-means finds by itself.",
    "communities": "Communities of the graph of playlists against as many clusters of vectors.",
    "space": "Properties of the space: a hub is a neighbour of many tracks, an orphan of none.",
    "cost": "What vectors cost, and what the models were trained on. ms a track: of the models alone, on "
    "this machine.",
}


@dataclass(frozen=True)
class Part:
    """A part of the page, under a heading."""

    heading: str
    paragraph: str
    content: list[Figure | Table]
    missing: list[str]
    findings: list[tuple[str, str]]
    anchor: str


def write_report(library: Library, measured: Measured, evaluation: Evaluation, path: Path) -> None:
    """Write the page. Raises OSError."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    page = template.render(
        evaluation=evaluation,
        differences=differences(evaluation) if evaluation.baseline else None,
        parts=list(parts(library, measured, evaluation)),
        color=figures.color,
        made=f"{datetime.now(UTC):%d %B %Y}",
        versions=software_versions(),
        artists=len(set(measured.sample.artists.tolist())),
    )
    path.write_text(page)


def differences(evaluation: Evaluation) -> Table:
    """The differences of runs from the baseline, a column for each task and metric that is compared."""
    columns: dict[str, dict[str, str]] = {}
    for section in SECTIONS.values():
        for run, scores in evaluation.scores.items():
            for one in scores:
                for metric in section.compared if one.task in section.tasks else ():
                    if (found := one.differences.get(metric)) is not None:
                        head = f"{one.task.replace('-', ' ')}: {metric_text(metric)}"
                        is_told = found.probability < LEVEL
                        text = f"{found.estimate.mean:+.3f}" if is_told else "="
                        columns.setdefault(head, {})[run] = text
    names = [run for run in evaluation.scores if any(run in column for column in columns.values())]
    rows = [[run, *(column.get(run, "") for column in columns.values())] for run in names]
    return Table("Differences", ["run", *columns], rows)


def parts(library: Library, measured: Measured, evaluation: Evaluation) -> Iterator[Part]:
    for name in SECTIONS:
        if content := list(score_section(evaluation, name)):
            yield _part(name.capitalize(), PARAGRAPHS[name], content)
    tables = [
        Table.of_facts(name.capitalize(), evaluation.facts[name], text)
        for name, text in FACTS.items()
        if name in evaluation.facts
    ]
    yield _part("Clusters, space and cost", "", [*tables])
    material = Material(library, measured, evaluation)
    yield _part("Maps", "Maps distort: those with a trustworthiness below 0.9 put strangers side by side.",
                [*maps(material)])  # fmt: skip
    for seed in seeds(material):
        yield _seed_part(seed)
    yield _part("What this report took", "", [_steps(measured)])


def _steps(measured: Measured) -> Table:
    names = list(dict.fromkeys(step.name for step in measured.steps))
    seconds = {(step.run, step.name): f"{step.seconds:.1f}" for step in measured.steps}
    peaks = {step.run: step.peak_gigabytes for step in measured.steps}
    rows = [
        [run, *(seconds.get((run, name), "") for name in names), f"{peak:.1f}"] for run, peak in peaks.items()
    ]
    heads = ["run", *(f"{name}, s" for name in names), "peak memory so far, GB"]
    return Table("Time and memory of each step", heads, rows)


def _part(heading: str, paragraph: str, content: list[Figure | Table]) -> Part:
    return Part(heading, paragraph, content, [], [], heading.lower().replace(" ", "-").replace(",", ""))


def _seed_part(seed: Seed) -> Part:
    content = [one for one in seed.figures if not isinstance(one, str)]
    missing = [one for one in seed.figures if isinstance(one, str)]
    anchor = seed.name.lower().replace(" ", "-")
    return Part(seed.name, seed.source, content, missing, list(seed.findings), anchor)


def score_section(evaluation: Evaluation, name: str) -> Iterator[Figure | Table]:
    """The figures of some tasks, and the table of all."""
    section = SECTIONS[name]
    metric, plotted = FIGURES[name]
    by_task: dict[str, dict[str, Score]] = {}
    for run, scores in evaluation.scores.items():
        for one in scores:
            if one.task in section.tasks:
                by_task.setdefault(one.task, {})[run] = one
    for task in plotted:
        if task in by_task:
            yield _intervals(task, metric, by_task[task])
    rows = [
        [run, task.replace("-", " "), f"{one.queries:,}", "" if one.chance is None else f"{one.chance:.3f}",
         *(one.metrics[m].text() if m in one.metrics else "" for m in section.metrics)]
        for task, each in by_task.items()
        for run, one in sorted(each.items(), key=lambda item: -next(iter(item[1].metrics.values())).mean)
    ]  # fmt: skip
    if rows:
        heads = ["run", "by", "queries", "chance", *(metric_text(m) for m in section.metrics)]
        meanings = "; ".join(f"{metric_text(m)}: {text}" for m, text in section.metrics.items())
        yield Table(f"{name.capitalize()}: all values", heads, rows, f"{meanings}.")


def _intervals(task: str, metric: str, by_run: dict[str, Score]) -> Figure:
    estimates = {run: one.metrics[metric] for run, one in by_run.items()}
    first = next(iter(by_run.values()))
    has_chance = metric in ("nearest", "r_precision", "logistic", "preferred")
    text = f"{metric_text(metric)} by {task.replace('-', ' ')}"
    groups = "sessions" if task == judgements.TASK else "artists"
    caption = f"{first.queries:,} queries; bars: 95 % over {groups}, where there are enough"
    if has_chance and first.chance is not None:
        caption += f"; dashed: expected by chance, {first.chance:.3f}"
    svg = figures.intervals(estimates, text, first.chance if has_chance else None)
    return Figure(f"{text[0].upper()}{text[1:]}", svg, f"{caption}.")


def maps(material: Material) -> Iterator[Figure]:
    """Three maps of each run."""
    names, codes = material.colors
    for run in material.records:
        for method, name in METHODS.items():
            svg = figures.scatter(material.positions(run, method), codes if names else None)
            text = str(material.faithfulness(run, method))
            yield Figure(f"{name}, {run}", svg, text, names)
