"""The reference of a map: a random sample of tracks, by which positions on it are computed."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from songray.keys import Keys
from songray.library import Vectors
from songray.search.clusters import UNKNOWN, Clusters, nearest_cluster
from songray.search.maps import Positions

NEAREST = 5  # tracks of the reference, between which another one is placed
PLACED_AT_ONCE = 4096
LEAST_DISTANCE = 1e-3  # vectors that are nearer count as equal: they are stored in half precision


@dataclass(frozen=True)
class Reference:
    """A random sample of tracks, their vectors and, where a map was fitted to them, their positions. It
    is the same in all versions of an index until one is built anew."""

    tracks: Keys  # without revision, sorted
    vectors: Vectors  # (tracks, dimension)
    positions: Positions | None = None  # (tracks, 2)
    clusters: Clusters | None = None  # (tracks,), where a map was fitted

    def place(self, vectors: Vectors) -> Positions:
        """The positions of unit vectors, (rows, dimension), on the map: (rows, 2).

        The weighted mean of the positions of the five nearest tracks of the reference, with weights of the
        distance to the power of −4 (Shepard, 1968): a track of the reference has its own position. Where
        there are none, the first two principal components.
        """
        if self.positions is None or not len(self.tracks):
            mean, axes = self.axes()
            return np.asarray((vectors - mean) @ axes, np.float32)
        parts = [
            self._between(vectors[start : start + PLACED_AT_ONCE])
            for start in range(0, len(vectors), PLACED_AT_ONCE)
        ]
        return np.concatenate([np.empty((0, 2), np.float32), *parts])

    def cluster(self, vectors: Vectors) -> Clusters:
        """The cluster of unit vectors, (rows, dimension): (rows,), UNKNOWN where there are none."""
        if self.clusters is None or not len(self.tracks):
            return np.full(len(vectors), UNKNOWN, np.int16)
        return nearest_cluster(vectors, self.vectors, self.clusters)

    def _between(self, vectors: Vectors) -> Positions:
        assert self.positions is not None
        cosines = vectors @ self.vectors.T
        count = min(NEAREST, len(self.tracks))
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        squared = np.maximum(2 - 2 * np.take_along_axis(cosines, nearest, axis=1), LEAST_DISTANCE**2)
        weights = squared.astype(np.float64) ** -2
        weights /= weights.sum(axis=1, keepdims=True)
        placed: Positions = np.einsum("rn,rnp->rp", weights, self.positions[nearest]).astype(np.float32)
        return placed

    def axes(self) -> tuple[Vectors, Vectors]:
        """Mean, (dimension,), and the first two principal directions, (dimension, 2): the axes of a map that
        was not fitted.

        The largest component of each direction is positive, so that the sign is determined.
        """
        mean = self.vectors.sum(axis=0) / max(1, len(self.vectors))
        centred = self.vectors - mean
        _, directions = np.linalg.eigh(centred.T @ centred)  # by ascending variance
        axes = directions[:, :-3:-1]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0, keepdims=True), axis=0)
        return mean, axes * np.sign(largest)

    def without(self, tracks: Keys) -> Reference:
        """The reference without some tracks, given without revisions."""
        is_kept = ~np.isin(self.tracks, tracks)
        positions = None if self.positions is None else self.positions[is_kept]
        clusters = None if self.clusters is None else self.clusters[is_kept]
        return Reference(self.tracks[is_kept], self.vectors[is_kept], positions, clusters)

    def to_bytes(self) -> bytes:
        """A structured array in the format of numpy, as `from_array` takes it."""
        fields = [("track", "i8"), ("vector", "f4", self.vectors.shape[1])]
        if self.positions is not None:
            fields.append(("position", "f4", 2))
        if self.clusters is not None:
            fields.append(("cluster", "i2"))
        content = np.empty(len(self.tracks), fields)
        content["track"], content["vector"] = self.tracks, self.vectors
        if self.positions is not None:
            content["position"] = self.positions
        if self.clusters is not None:
            content["cluster"] = self.clusters
        np.save(stream := io.BytesIO(), content)
        return stream.getvalue()

    @classmethod
    def from_array(cls, content: NDArray[np.void]) -> Reference:
        names = content.dtype.names or ()
        positions, clusters = (
            content[name].copy() if name in names else None for name in ("position", "cluster")
        )
        return cls(content["track"].copy(), content["vector"].copy(), positions, clusters)
