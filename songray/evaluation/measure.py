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

from songray.audio.sets import excerpt_of
from songray.evaluation.clusters import Counts, cluster, cluster_sets, count_clusters, genre_sets
from songray.evaluation.intervals import Observations
from songray.evaluation.judgements import TASK, preferences, read_judgements
from songray.evaluation.listeners import (
    Communities,
    Listening,
    agreement,
    communities,
    compare_communities,
    continuations,
    read_listening,
)
from songray.evaluation.metrics import retrieval
from songray.evaluation.musly import MOST_TRACKS, is_installed, musly
from songray.evaluation.probes import probe
from songray.evaluation.robustness import PREVIEW, ChangedTracks, cost, robustness
from songray.evaluation.sample import Sample
from songray.evaluation.scores import COLLABORATIVE, MUSLY, RANDOM, Facts
from songray.evaluation.space import reduced, space
from songray.learning import runs
from songray.learning.scale import unit
from songray.library import Library, Row, Vectors
from songray.search.version import newest_version

Part = Literal["retrieval", "probes", "clusters", "listeners", "space", "robustness", "figures"]
PARTS: tuple[Part, ...] = ("retrieval", "probes", "clusters", "listeners", "space", "robustness", "figures")


@dataclass(frozen=True)
class Scope:
    """What is measured."""

    parts: tuple[Part, ...]
    neighbours: int  # the k of the precision and the NDCG of the k nearest
    queries: int  # the most tracks whose neighbours are ranked, for retrieval
    changed: int  # number of tracks whose changed audio is embedded, for robustness
    judgements: tuple[str, ...] = ()  # files of judgements, beside those of the library


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


def measure(library: Library, sample: Sample, vectors: dict[str, Vectors], scope: Scope) -> Measured:
    """Measure the parts of a scope, of the vectors of each run on the tracks of a sample."""
    measured = Measured(sample, vectors)
    is_only_retrieval = scope.parts == ("retrieval",)
    compared = vectors if is_only_retrieval else {**vectors, RANDOM: _random_vectors(len(sample.rows))}
    measured.found = {name: {} for name in compared}
    if "listeners" in scope.parts:
        _read_listeners(library, measured)
        preferred = preferences(read_judgements(library, scope.judgements))
        for name in measured.found.keys() & preferred.keys():
            measured.found[name][TASK] = preferred[name]
    if "clusters" in scope.parts:
        measured.sets = genre_sets(sample.genres, vectors)
    for name, each in compared.items():
        _measure_vectors(measured, name, each, scope)
    if "robustness" in scope.parts:  # what takes audio
        _measure_musly(library, measured, scope)
        changed = ChangedTracks(library, sample, scope.changed)
        for name, each in vectors.items():
            _measure_encoder(library, measured, name, each, changed)
    _remark_missing(measured, scope)
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
        (found,) = continuations(factors, listening, [every])
        if found is not None:
            measured.found[COLLABORATIVE] = {"playlist-continuation": found}


def _measure_vectors(measured: Measured, name: str, vectors: Vectors, scope: Scope) -> None:
    sample, found = measured.sample, measured.found[name]
    if "retrieval" in scope.parts:
        with measured.step(name, "retrieval"):
            tasks = retrieval(vectors, sample.rows, scope.neighbours, scope.queries)
            found |= {
                task.name: Observations(each.values, sample.artists[each.queries], each.chance)
                for task, each in tasks.items()
            }
    takes_short = {"probes", "clusters", "listeners", "space"}
    short = reduced(vectors) if takes_short & set(scope.parts) else vectors
    if "probes" in scope.parts:
        with measured.step(name, "probes"):
            for label, values in sample.labels.items():
                if (probed := probe(short, values, sample.artists)) is not None:
                    found[f"{label}-probe"] = probed
    if "clusters" in scope.parts:
        with measured.step(name, "clusters"):
            measured.add("clusters", name, cluster(short, sample.genres))
            measured.add("genre sets", name, cluster_sets(short, sample.genres, measured.sets))
            if (counts := count_clusters(short)) is not None:
                measured.counts[name] = counts
                facts = {
                    "k by silhouette": counts.by_silhouette,
                    "silhouette": max(counts.silhouette),
                    "silhouette at k = 2": counts.silhouette[0],
                    "k by elbow": counts.by_elbow,
                }
                measured.add("numbers of clusters", name, facts)
    if "listeners" in scope.parts and measured.listening is not None:
        with measured.step(name, "listeners"):
            found |= agreement(vectors, measured.listening, sample)
            if measured.communities is not None:
                measured.add("communities", name, compare_communities(short, measured.communities))
    if "space" in scope.parts:
        with measured.step(name, "space"):
            measured.add("space", name, space(short))


def _measure_musly(library: Library, measured: Measured, scope: Scope) -> None:
    """The baseline that takes audio and has no vectors."""
    if not is_installed() or not library.table("previews").files():
        measured.remarks.append("no row of Musly: it takes audio, and pip install 'songray[musly]'")
        return
    run = runs.choose(library, next(iter(measured.vectors)))
    with measured.step(MUSLY, "retrieval"):
        excerpt = excerpt_of(library, run.set)
        measured.found[MUSLY], facts = musly(library, measured.sample, excerpt, scope.neighbours)
        measured.add("space", MUSLY, facts)
    if len(measured.sample.rows) > MOST_TRACKS:
        measured.remarks.append(f"{MUSLY}: on {MOST_TRACKS} tracks alone, so that its values are higher")


def _measure_encoder(
    library: Library, measured: Measured, name: str, vectors: Vectors, changed: ChangedTracks
) -> None:
    run = runs.choose(library, name)
    with measured.step(name, "robustness"):
        measured.found[name] |= robustness(vectors, run, changed)
        version = newest_version(library, name)
        recall: Row = {"recall of the index": version.recall} if version else {}
        measured.add("cost", name, cost(run, vectors.shape[1], changed) | recall)


def _remark_missing(measured: Measured, scope: Scope) -> None:
    """Say what could not be computed, and why."""
    reasons = {
        "genre-probe": ("probes", "fewer than two genres have five artists"),
        "decade-probe": ("probes", "fewer than two decades of release have five artists"),
        "tempo-probe": ("probes", "the catalogue states fewer than two tempos of five artists"),
        "key-probe": ("probes", "the catalogue states fewer than two keys of five artists"),
        "mode-probe": ("probes", "the catalogue does not state major and minor of five artists each"),
        "related-artist-without-artist": ("retrieval", "the catalogue states no related artists"),
        PREVIEW: ("robustness", "no song is a minute long, or the run embeds what a preview has"),
        "collaborative-neighbours": ("listeners", "too few playlists hold four of the tracks"),
    }
    every = set().union(*measured.found.values())
    for task, (part, reason) in reasons.items():
        if part in scope.parts and task not in every:
            measured.remarks.append(f"no {task.replace('-', ' ')}: {reason}")
    if "listeners" in scope.parts and measured.listening and measured.communities is None:
        measured.remarks.append("no communities of playlists: pip install 'songray[igraph]' (GPL)")
    if measured.communities:
        measured.remarks += filter(None, map(measured.communities.remark, measured.communities.labels))
