"""The reference of an index: a random sample of tracks, from which hubness and the map are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from songray.keys import Keys
from songray.library import Vectors

NEIGHBOURS = 10  # of each track in the reference, whose mean cosine is its hubness
ROWS_AT_ONCE = 1024  # whose cosines fit in the processor's cache


@dataclass(frozen=True)
class Reference:
    """A random sample of tracks and their vectors, the same in all versions until an index is built anew."""

    tracks: Keys  # without revision, sorted
    vectors: Vectors  # (tracks, dimension)

    def hubness(self, tracks: Keys, vectors: Vectors) -> Vectors:
        """Mean cosine of each vector to its nearest in the reference, itself excluded, −1…1: high where a
        track is near to everything (r in Conneau et al. 2018, Word translation without parallel data)."""
        neighbours = min(NEIGHBOURS, len(self.tracks) - 1)
        if neighbours < 1:
            return np.zeros(len(vectors), np.float32)
        position = np.minimum(np.searchsorted(self.tracks, tracks), len(self.tracks) - 1)
        itself = self.tracks[position] == tracks
        means = []
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            cosines = vectors[part] @ self.vectors.T  # (rows, reference)
            rows = np.flatnonzero(itself[part])
            cosines[rows, position[part][rows]] = -np.inf
            means.append(np.partition(cosines, -neighbours, axis=1)[:, -neighbours:].mean(axis=1))
        return np.concatenate(means)

    def axes(self) -> tuple[Vectors, Vectors]:
        """Mean, (dimension,), and the first two principal directions, (dimension, 2): the axes of the map.

        The largest component of each direction is positive, so that the sign is determined.
        """
        mean = self.vectors.sum(axis=0) / max(1, len(self.vectors))
        centred = self.vectors - mean
        _, directions = np.linalg.eigh(centred.T @ centred)  # by ascending variance
        axes = directions[:, :-3:-1]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0, keepdims=True), axis=0)
        return mean, axes * np.sign(largest)
