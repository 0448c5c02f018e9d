"""The reference of an index: a random sample of tracks, from which the axes of the map are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from songray.keys import Keys
from songray.library import Vectors


@dataclass(frozen=True)
class Reference:
    """A random sample of tracks and their vectors, the same in all versions until an index is built anew."""

    tracks: Keys  # without revision, sorted
    vectors: Vectors  # (tracks, dimension)

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
