"""Reads embeddings and tracks, writes a run that adapts the vectors of another one, where that helps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from songray.errors import InvalidOption
from songray.keys import REVISION_BITS, Keys
from songray.learning import runs
from songray.learning.members import embeddings_of, read_vectors
from songray.learning.runs import ADAPTATION, Run
from songray.learning.scale import unit, within_class_projection
from songray.library import Library, Vectors
from songray.table import Table

SAMPLE_TRACKS, SAMPLE_FILES = 10_000, 16  # at most, that are compared, and on which the projection is fitted
FOLDS = 5  # parts of the artists, each of which is held out once
LEAST_ARTISTS = 10  # with at least two tracks, below which an interval means nothing
RESAMPLES = 1000  # of the artists, for the interval

Names = NDArray[np.str_]  # of artists or recordings, one a track; "": unknown


@dataclass(frozen=True)
class AdaptationConfig:
    """Adaptation of a run to the artists of this library, where their held-out tracks show that it helps."""

    base: str = ""
    """Run whose vectors are adapted; it must have embedded tracks of this library."""
    run: str = ""
    """Name of the new run; by default adaptation and a hash of the other options."""


@dataclass(frozen=True)
class Sample:
    """Tracks of known artists, those with the same artist being of one class."""

    keys: Keys
    vectors: Vectors  # (tracks, dimension), of length 1
    artists: Names
    recordings: Names

    def select(self, rows: NDArray[np.bool_]) -> Sample:
        return Sample(self.keys[rows], self.vectors[rows], self.artists[rows], self.recordings[rows])

    @property
    def judged(self) -> int:
        """The number of artists with at least two tracks."""
        return int((np.unique(self.artists, return_counts=True)[1] > 1).sum())


@dataclass(frozen=True)
class Adaptation:
    """Whether a run was adapted, and why: what adapted vectors score for artists that they were not fitted
    on, less what the vectors of the base score for the same tracks."""

    base: str
    run: Run | None  # None: it was not adapted
    tracks: int
    artists: int
    before: float = 0.0  # mean R-precision by artist of the base
    difference: tuple[float, float, float] | None = None  # mean, and bounds of 95 %; None: not measured

    def __str__(self) -> str:
        if self.difference is None:
            return (
                f"adapt: kept {self.base}: {self.artists} artists have two tracks or more, and the gain of "
                f"an adaptation can be judged from {LEAST_ARTISTS} on"
            )
        mean, low, high = self.difference
        compared = (
            f"on {self.tracks} tracks of {self.artists} artists, each held out once, the R-precision by "
            f"artist changes by {mean:+.3f} ({low:+.3f}…{high:+.3f}, 95 %) from {self.before:.3f}"
        )
        if self.run is None:
            return f"adapt: kept {self.base}: {compared}"
        return f"adapt: run {self.run.name} adapts {self.base}: {compared}"


def adapt(library: Library, config: AdaptationConfig) -> Adaptation:
    """Adapt a run by a projection of its vectors, fitted on the artists of the library, where the interval
    of the gain lies above 0; otherwise no run is written. A finished run is judged anew, and not fitted
    again."""
    if not config.base:
        raise InvalidOption("--base is empty: name the run to adapt")
    base = runs.choose(library, config.base)
    sample = read_sample(library, embeddings_of(library, base.name))
    if sample.judged < LEAST_ARTISTS:
        return Adaptation(base.name, None, len(sample.keys), sample.judged)
    before, change, artists = held_out_change(sample)
    difference = interval(change, artists)
    run = _write(library, config, base, sample) if difference[1] > 0 else None
    return Adaptation(base.name, run, len(sample.keys), sample.judged, float(before.mean()), difference)


def _write(library: Library, config: AdaptationConfig, base: Run, sample: Sample) -> Run:
    """The run that adapts the base, fitted on the whole sample."""
    from songray.learning import fusion

    options = {"members": {base.name: 1.0}}
    name = config.run or runs.default_name(ADAPTATION, options)
    with library.lease(f"runs/{name}") as lease:
        runs.claim(library, name, {"model": ADAPTATION, "model_config": options, "config": {}})
        if (finished := runs.find(library, name)) is not None:
            return finished
        run = fusion.record(name, ADAPTATION, options, base.set, sample.keys)
        lease.check()
        fusion.save(library, run, fusion.Fusion(np.ones(1, np.float32), fit(sample)))
    return run


def read_sample(library: Library, embeddings: Table) -> Sample:
    """A random sample of the embedded tracks whose artists the catalogue knows."""
    keys = embeddings.sample_keys(SAMPLE_TRACKS, most_files=SAMPLE_FILES)
    tracks = library.table("tracks").newest_rows(keys >> REVISION_BITS, ["artist_ids", "recording", "isrc"])
    numbers = tracks["track_key"].to_numpy() >> REVISION_BITS
    _, rows, positions = np.intersect1d(numbers, keys >> REVISION_BITS, return_indices=True)
    described = tracks.take(pa.array(rows)).to_pylist()
    artists = np.array([(track["artist_ids"] or [""])[0] for track in described], np.str_)
    recordings = np.array([track["recording"] or track["isrc"] or "" for track in described], np.str_)
    chosen = keys[positions]
    return Sample(chosen, read_vectors(embeddings, chosen), artists, recordings).select(artists != "")


def fit(sample: Sample) -> Vectors:
    """The projection, (dimension, dimension)."""
    return within_class_projection(sample.vectors, sample.artists)


def held_out_change(sample: Sample) -> tuple[Vectors, Vectors, Names]:
    """The R-precision of each track of an artist with others, its change by a projection that is fitted on
    the artists of the other folds, and its artist."""
    names = np.random.default_rng(0).permutation(np.unique(sample.artists))
    parts = []
    for fold in range(FOLDS):
        is_held_out = np.isin(sample.artists, names[fold::FOLDS])
        held_out = sample.select(is_held_out)
        projection = fit(sample.select(~is_held_out))
        before = r_precision(held_out.vectors, held_out)
        after = r_precision(unit(held_out.vectors @ projection), held_out)
        is_judged = np.isfinite(before)
        parts.append((before[is_judged], (after - before)[is_judged], held_out.artists[is_judged]))
    before, change, artists = (np.concatenate(part) for part in zip(*parts, strict=True))
    return before, change, artists


def r_precision(vectors: Vectors, sample: Sample) -> Vectors:
    """For each track, among as many nearest others as its artist has: the share that is by its artist. Tracks
    of the same recording are left out; NaN where its artist has no others. Exact, on unit vectors."""
    values = np.full(len(vectors), np.nan, np.float32)
    for row, vector in enumerate(vectors):
        same = (sample.recordings == sample.recordings[row]) & (sample.recordings[row] != "")
        same[row] = True
        is_relevant = (sample.artists == sample.artists[row]) & ~same
        if relevant := int(is_relevant.sum()):
            nearest = np.argsort(np.where(same, np.inf, -(vectors @ vector)), kind="stable")[:relevant]
            values[row] = is_relevant[nearest].mean()
    return values


def interval(values: Vectors, artists: Names) -> tuple[float, float, float]:
    """The mean of values of tracks, and the bounds of 95 % of its means over resamples of the artists."""
    groups = [values[artists == artist] for artist in np.unique(artists)]
    sums, sizes = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    draws = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    low, high = np.percentile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
