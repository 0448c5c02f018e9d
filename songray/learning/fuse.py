"""Reads embeddings of several runs, writes a run that joins them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from songray.audio.sets import made_by
from songray.errors import InvalidOption, MissingInput
from songray.keys import Keys
from songray.learning import runs
from songray.learning.members import Members, read_vectors
from songray.learning.runs import FUSION, Run
from songray.library import Library

if TYPE_CHECKING:  # jobs import this module for its options
    from songray.learning.fusion import Fusion

SAMPLE_TRACKS, SAMPLE_FILES = 20_000, 16  # at most, on which the directions are fitted
TRACKS_PER_NUMBER = 5  # fewer tracks do not determine the directions in which other tracks differ


@dataclass(frozen=True)
class FusionConfig:
    """Several runs together: the cosine of two tracks is the weighted mean of the runs' cosines."""

    members: tuple[str, ...] = ()
    """The runs, each with its weight, as RUN:WEIGHT. All must have embedded tracks of this library."""
    dimension: int = 96
    """Numbers to which the joined vectors are reduced, where the library has at least five tracks for each;
    0: they are not reduced."""
    run: str = ""
    """Name of the new run; by default fusion and a hash of the other options."""

    def __post_init__(self) -> None:
        if self.dimension < 0:
            raise InvalidOption(f"--dimension {self.dimension}: must be at least 1, or 0 for no reduction")
        if self.members and len(self.weights) < 2:
            raise InvalidOption(f"--members {' '.join(self.members)}: name at least two runs")

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each run. Raises InvalidOption where one is named twice or has no positive weight."""
        weights: dict[str, float] = {}
        for text in self.members:
            name, _, number = text.rpartition(":")
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if not name or not 0 < weight < math.inf:
                raise InvalidOption(f"--members {text}: write RUN:WEIGHT, with a weight above 0")
            if name in weights:
                raise InvalidOption(f"--members {text}: the run {name} is named twice")
            weights[name] = weight
        return dict(sorted(weights.items()))


def fuse(library: Library, config: FusionConfig) -> Run:
    """Join the runs that the options name; a finished run is returned as it is."""
    options = {"members": config.weights, "dimension": config.dimension}
    name = config.run or runs.default_name(FUSION, options)
    with library.lease(f"runs/{name}") as lease:
        members = [_member(library, member) for member in config.weights]
        if not members:
            raise InvalidOption("--members is empty: name the runs to join, as RUN:WEIGHT")
        _check_excerpts(library, members)
        runs.claim(library, name, {"model": FUSION, "model_config": options, "config": {}})
        if (finished := runs.find(library, name)) is not None:
            return finished
        from songray.learning import fusion

        fitted, sample = fit(Members.of(library, (member.name for member in members)), config)
        run = fusion.record(name, FUSION, options, members[0].set, sample)
        lease.check()
        fusion.save(library, run, fitted)
    return run


def _member(library: Library, name: str) -> Run:
    if (run := runs.find(library, name)) is None:
        others = ", ".join(runs.finished(library)) or "none"
        raise InvalidOption(f"--members {name}: no such run exists; the finished runs are {others}")
    return run


def _check_excerpts(library: Library, members: list[Run]) -> None:
    """Raise InvalidOption where members embed different parts of a track: an upload is decoded once."""
    first, *others = members
    excerpts = {run.name: made_by(library, run.set).get("excerpt") for run in members}
    for run in others:
        if excerpts[run.name] != excerpts[first.name]:
            raise InvalidOption(
                f"--members {first.name} {run.name}: their sets, spectrograms/{first.set} and "
                f"spectrograms/{run.set}, have different excerpts of a track ({excerpts[first.name]} and "
                f"{excerpts[run.name]}): run `songray transform` for a set with the same excerpt, and train "
                "with that --set"
            )


def fit(members: Members, config: FusionConfig) -> tuple[Fusion, Keys]:
    """The fusion, and the keys of the tracks that its directions are fitted on: a sample of those that all
    members have; none where vectors are not reduced."""
    from songray.learning.fusion import Fusion, principal_directions

    weights = np.array(list(config.weights.values()), np.float32)
    sample = _sample(members)
    joined = Fusion(weights).join([read_vectors(table, sample) for table in members.tables])
    if not 0 < config.dimension < joined.shape[1] or len(sample) < TRACKS_PER_NUMBER * config.dimension:
        return Fusion(weights), sample[:0]
    return Fusion(weights, principal_directions(joined, config.dimension)), sample


def _sample(members: Members) -> Keys:
    """Keys of tracks that all members have, in a few files of the first."""
    common = members.tables[0].sample_keys(SAMPLE_TRACKS, members.common, SAMPLE_FILES)
    if not common.size:
        names = ", ".join(table.name for table in members.tables)
        raise MissingInput(f"no track is in all of {names}: run `songray embed` for each run first")
    return common
