"""Several runs as one: their vectors of a track, weighted and joined. It needs no model: vectors are found in
the runs' tables of embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from songray.keys import Keys
from songray.learning.runs import Run, each_once, save_record, software_versions, weights_path
from songray.learning.scale import unit
from songray.library import Library, Vectors


@dataclass(frozen=True)
class Fusion:
    """The weights of some runs, and the directions to which their joined vectors are projected."""

    weights: Vectors  # (members,)
    directions: Vectors | None = None  # (numbers of all members, dimension), orthonormal; None: all numbers

    def join(self, members: Sequence[Vectors]) -> Vectors:
        """The unit vectors of each member, (tracks, dimension) each → unit vectors, (tracks, dimension).

        Each member's is multiplied by the root of its weight, so that the cosine of joined vectors is the
        weighted mean of the members' cosines; the projection keeps it nearly.
        """
        roots = np.sqrt(self.weights / self.weights.sum())
        joined = np.concatenate(
            [vectors * root for vectors, root in zip(members, roots, strict=True)], axis=1
        )
        return unit(joined if self.directions is None else joined @ self.directions)


@dataclass(frozen=True)
class JoinedTags:
    """The tags of several runs together: each label once, with the mean of the probabilities that the runs
    which have the label give it."""

    members: Sequence[Sequence[str]]  # the labels of each run

    @property
    def labels(self) -> tuple[str, ...]:
        return each_once(self.members)

    def join(self, members: Sequence[Vectors]) -> Vectors | None:
        """The probabilities of each run, (tracks, labels of the run), NaN where they are unknown, → (tracks,
        labels), NaN where a run that has labels knows none of a track; None where no run has labels."""
        column = {label: number for number, label in enumerate(self.labels)}
        if not column:
            return None
        total, count = np.zeros((len(members[0]), len(column)), np.float32), np.zeros(len(column))
        for labels, tags in zip(self.members, members, strict=True):
            columns = [column[label] for label in labels]
            total[:, columns] += tags
            count[columns] += 1
        means: Vectors = (total / count).astype(np.float32)
        return means


def principal_directions(joined: Vectors, dimension: int) -> Vectors:
    """The first right singular vectors of vectors that are not centred, (numbers, dimension): the projection
    to them keeps as much of all inner products as one to so many numbers can."""
    _, directions = np.linalg.eigh(joined.T.astype(np.float64) @ joined)  # by ascending eigenvalue
    return np.ascontiguousarray(directions[:, : -dimension - 1 : -1], np.float32)


def record(name: str, model: str, options: dict[str, Any], set_name: str, fitted: Keys) -> Run:
    """The record of a run whose vectors are those of other runs, joined or projected; `fitted` are the keys
    of the tracks that its directions are fitted on."""
    return Run(
        name=name,
        model=model,
        model_config=options,
        config={},
        set=set_name,
        tracks={"train": fitted.size, "validation": 0},
        data=hashlib.sha256(fitted.tobytes()).hexdigest(),
        made_with=software_versions(),
        metrics={},
        curve=[],
    )


def save(library: Library, run: Run, fusion: Fusion) -> None:
    """Write model.safetensors, and then the record of the run."""
    tensors = {"weights": fusion.weights}
    if fusion.directions is not None:
        tensors["directions"] = fusion.directions
    library.filesystem.create_dir(library.path("runs", run.name), recursive=True)
    with library.filesystem.open_output_stream(weights_path(library, run.name)) as stream:
        stream.write(safetensors.numpy.save(tensors))
    save_record(library, run)


def load(library: Library, run: Run) -> Fusion:
    with library.filesystem.open_input_stream(weights_path(library, run.name)) as stream:
        tensors = safetensors.numpy.load(stream.read())
    return Fusion(tensors["weights"], tensors.get("directions"))
