"""What is measured of runs: the options, and each part in turn, on the same tracks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from songray.errors import InvalidOption, MissingInput
from songray.evaluation.clusters import Counts, cluster, cluster_sets, count_clusters, genre_sets
from songray.evaluation.intervals import Observations
from songray.evaluation.listeners import (
    Communities,
    Listening,
    agreement,
    communities,
    compare_communities,
    continuation,
    read_listening,
)
from songray.evaluation.metrics import retrieval
from songray.evaluation.probes import probe
from songray.evaluation.robustness import ChangedTracks, cost, robustness
from songray.evaluation.sample import Sample
from songray.evaluation.scores import NAMES, Facts
from songray.evaluation.space import reduced, space
from songray.learning import runs
from songray.learning.scale import unit
from songray.library import Library, Row, Vectors, matrix
from songray.search.version import newest_version

DEFAULT_METRIC = "artist r_precision"
RANDOM = "random vectors"  # what has no run: expected values without any information
COLLABORATIVE = "collaborative factors"

Part = Literal["retrieval", "probes", "clusters", "listeners", "space", "robustness"]
PARTS: tuple[Part, ...] = ("retrieval", "probes", "clusters", "listeners", "space", "robustness")


@dataclass(frozen=True)
class EvaluateConfig:
    runs: tuple[str, ...] = ()
    """Runs to compare; by default all runs that have embeddings."""
    parts: tuple[Part, ...] = ()
    """What to measure; by default retrieval, and everything where --output names a folder."""
    neighbours: int = 10
    """The k of the precision and the NDCG of the k nearest."""
    sample: int = 10_000
    """The most tracks to compare, a random sample by the hash of their ids."""
    queries: int = 5_000
    """The most tracks of the sample whose neighbours among all of it are ranked, for retrieval."""
    changed: int = 40
    """Number of tracks whose changed audio is embedded, for robustness."""
    baseline: str = ""
    """Run with which each other one is compared, by paired tests over artists."""
    metric: str = DEFAULT_METRIC
    """Task and metric of --fail-below, such as "artist r_precision" or "genre-without-artist nearest"."""
    fail_below: float | None = None
    """Exit with an error where the lower bound of a run's difference from the baseline is below this."""
    output: str = ""
    """Folder for the report: report.html, report.json, and scores.parquet with a row for each run, task and
    metric."""

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("sample", 2), ("queries", 1), ("changed", 1)):
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} is {getattr(self, name)}: must be at least {least}")
        if self.metric not in NAMES:
            raise InvalidOption(f"--metric {self.metric!r}: choose from {', '.join(NAMES)}")
        if self.fail_below is not None and not self.baseline:
            raise InvalidOption("--fail-below needs a --baseline")

    def measures(self, part: Part) -> bool:
        return part in (self.parts or (PARTS if self.output else PARTS[:1]))


@dataclass
class Step:
    """What one step of the evaluation took."""

    run: str
    name: str
    seconds: float
    peak_gigabytes: float  # of the process, from its start to the end of the step


@dataclass
class Measured:
    """What was measured of some runs, as it grows."""

    sample: Sample
    vectors: dict[str, Vectors]  # by run
    sets: dict[str, list[str]] = field(default_factory=dict)  # of genres whose clusters are compared
    listening: Listening | None = None
    communities: Communities | None = None
    found: dict[str, dict[str, Observations]] = field(default_factory=dict)  # by run and task
    facts: dict[str, dict[str, Facts]] = field(default_factory=dict)  # by section and run
    counts: dict[str, Counts] = field(default_factory=dict)  # of clusters, by run
    remarks: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, run: str, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        self.steps.append(Step(run, name, seconds, peak))
        if seconds > 1:
            print(f"evaluate: {run}: {name} took {seconds:.1f} s", file=sys.stderr, flush=True)

    def add(self, section: str, run: str, facts: Facts) -> None:
        if facts:
            self.facts.setdefault(section, {})[run] = facts


def measure(library: Library, config: EvaluateConfig) -> Measured:
    """Raises MissingInput where there is nothing to compare."""
    tables = {name: library.table("embeddings", name) for name in config.runs or runs.finished(library)}
    tables = {name: table for name, table in tables.items() if table.files()}
    if not tables:
        raise MissingInput("no run has embeddings: run `songray embed` first")
    if config.baseline and config.baseline not in tables:
        raise InvalidOption(f"--baseline {config.baseline}: the runs to compare are {', '.join(tables)}")
    sample = Sample.read(library, list(tables.values()), config.sample)
    if len(sample.rows) < 2:
        raise MissingInput(
            f"{len(sample.rows)} tracks have embeddings of all runs: run `songray embed` for each"
        )
    vectors = {
        name: matrix(table.newest_rows(sample.tracks, ["embedding"])["embedding"])
        for name, table in tables.items()
    }
    measured = Measured(sample, vectors)
    compared = {**vectors, **({RANDOM: _random_vectors(len(sample.rows))} if config.output else {})}
    measured.found = {name: {} for name in compared}
    if config.measures("listeners"):
        _read_listeners(library, measured)
    if config.measures("clusters"):
        measured.sets = genre_sets(sample.genres, vectors)
    for name, each in compared.items():
        _measure_vectors(measured, name, each, config)
    if config.measures("robustness"):
        changed = ChangedTracks(library, sample, config.changed)
        for name, each in vectors.items():
            _measure_encoder(library, measured, name, each, changed)
    _remark_missing(measured, config)
    return measured


def _random_vectors(count: int) -> Vectors:
    return unit(np.random.default_rng(0).normal(size=(count, 64)))


def _read_listeners(library: Library, measured: Measured) -> None:
    """The playlists, and the scores of their collaborative factors themselves, for those who continue
    playlists by them."""
    with measured.step("all runs", "playlists"):
        measured.listening = listening = read_listening(library, measured.sample)
        if listening is None:
            return
        measured.communities = communities(listening)
        factors = np.zeros((len(measured.sample.rows), listening.factors.shape[1]), np.float32)
        factors[listening.factored] = listening.factors
        every = np.ones(len(factors), bool)
        if (found := continuation(factors, listening, every)) is not None:
            measured.found[COLLABORATIVE] = {"playlist-continuation": found}


def _measure_vectors(measured: Measured, name: str, vectors: Vectors, config: EvaluateConfig) -> None:
    sample, found = measured.sample, measured.found[name]
    if config.measures("retrieval"):
        with measured.step(name, "retrieval"):
            tasks = retrieval(vectors, sample.rows, config.neighbours, config.queries)
            found |= {
                task.name: Observations(each.values, sample.artists[each.queries], each.chance)
                for task, each in tasks.items()
            }
    short = reduced(vectors)
    if config.measures("probes"):
        with measured.step(name, "probes"):
            for task, labels in (("genre-probe", sample.genres), ("decade-probe", sample.decades)):
                if (probed := probe(short, labels, sample.artists)) is not None:
                    found[task] = probed
    if config.measures("clusters"):
        with measured.step(name, "clusters"):
            measured.add("clusters", name, cluster(short, sample.genres))
            measured.add("genre sets", name, cluster_sets(short, sample.genres, measured.sets))
            if (counts := count_clusters(short)) is not None:
                measured.counts[name] = counts
                best = {"k by silhouette": counts.by_silhouette, "silhouette": max(counts.silhouette)}
                second = {"silhouette at k = 2": counts.silhouette[0], "k by elbow": counts.by_elbow}
                measured.add("numbers of clusters", name, best | second)
    if config.measures("listeners") and measured.listening is not None:
        with measured.step(name, "listeners"):
            found |= agreement(vectors, measured.listening, sample)
            if measured.communities is not None:
                measured.add("communities", name, compare_communities(short, measured.communities))
    if config.measures("space"):
        with measured.step(name, "space"):
            measured.add("space", name, space(short))


def _measure_encoder(
    library: Library, measured: Measured, name: str, vectors: Vectors, changed: ChangedTracks
) -> None:
    run = runs.choose(library, name)
    with measured.step(name, "robustness"):
        measured.found[name] |= robustness(vectors, run, changed)
        version = newest_version(library, name)
        recall: Row = {"recall of the index": version.recall} if version else {}
        measured.add("cost", name, cost(run, vectors.shape[1], changed) | recall)


def _remark_missing(measured: Measured, config: EvaluateConfig) -> None:
    """Say what could not be computed, and why."""
    reasons = {
        "genre-probe": ("probes", "fewer than two genres have five artists"),
        "decade-probe": ("probes", "fewer than two decades of release have five artists"),
        "collaborative-neighbours": ("listeners", "too few playlists hold four of the tracks"),
    }
    every = set().union(*measured.found.values())
    for task, (part, reason) in reasons.items():
        if config.measures(part) and task not in every:  # type: ignore[arg-type]
            measured.remarks.append(f"no {task.replace('-', ' ')}: {reason}")
    if config.measures("probes"):
        measured.remarks.append("no probes of tempo, key and mode: catalogues do not state them")
    if config.measures("listeners") and measured.listening and measured.communities is None:
        measured.remarks.append("no communities of playlists: pip install 'songray[igraph]' (GPL)")
    if measured.communities:
        measured.remarks += filter(None, map(measured.communities.remark, measured.communities.labels))
