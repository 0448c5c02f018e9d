"""Paths from one track to another along the great circle, and continuations of playlists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from songray.errors import NotEnoughTracks
from songray.library import Row, Vectors
from songray.search.candidates import Candidates
from songray.search.filters import Filters
from songray.search.ranking import (
    RankingOptions,
    Searcher,
    Seed,
    Seeds,
    distinct,
    find,
    normalise,
    places,
    possible_pairs,
    recommend,
    recordings,
    similarity,
)

PATH_BREADTH = 16  # candidates a step


async def path(searcher: Searcher, start: str, end: str, steps: int, filters: Filters) -> list[Row]:
    """`steps` tracks from one to another, both included, in the order of the great circle between them and as
    evenly spaced as the catalogue allows; each recording once. Raises UnknownTrack, and NotEnoughTracks."""
    ends = await find(searcher, [start, end])
    arc = Arc(*ends.vectors)
    targets = np.linspace(0, 1, steps)[1:-1]
    candidates = await _candidates(searcher, ends, arc.points(targets), filters)
    chosen = spread(arc, targets, await searcher.vectors(places(candidates)))
    first, last = places(ends.candidates)
    return await searcher.rows([first, *places(candidates[chosen]), last])


async def start_similarities(searcher: Searcher, track_ids: Sequence[str]) -> list[float]:
    """The similarity of each track of a path to the first one, itself included. Raises UnknownTrack."""
    tracks = await find(searcher, track_ids)
    similarities: list[float] = similarity(tracks.vectors @ tracks.vectors[0]).tolist()
    return similarities


async def _candidates(searcher: Searcher, ends: Seeds, points: Vectors, filters: Filters) -> Candidates:
    """Neighbours of points, (points, dimension), at least as many as there are points."""
    breadth = PATH_BREADTH
    while True:
        near = await searcher.nearest(points, breadth, filters)
        candidates = await _distinct_recordings(searcher, ends, near)
        if len(candidates) >= len(points):
            return candidates
        if all(len(neighbours) < breadth for neighbours in near):
            raise NotEnoughTracks(
                f"the path needs {len(points)} tracks between its ends; {len(candidates)} match the filters"
            )
        breadth *= 4


async def _distinct_recordings(searcher: Searcher, ends: Seeds, near: list[Candidates]) -> Candidates:
    """One candidate of each recording, but for those of the ends."""
    candidates = distinct(ends.candidates, *near)
    pairs = possible_pairs(candidates)
    vectors = await searcher.vectors(places(candidates)) if len(pairs) else None
    _, first = np.unique(recordings(candidates, pairs, vectors), return_index=True)
    return candidates[np.sort(first[first >= len(distinct(ends.candidates))])]


@dataclass(frozen=True)
class Arc:
    """The great circle from one unit vector to another."""

    start: Vectors  # (dimension,)
    end: Vectors

    @property
    def angle(self) -> float:
        return float(np.arccos(np.clip(self.start @ self.end, -1, 1)))

    @property
    def tangent(self) -> Vectors:
        """The unit vector at right angles to the start, towards the end."""
        tangent = self.end - (self.end @ self.start) * self.start
        if np.linalg.norm(tangent) < 1e-4:  # equal or opposite ends: any direction leads to the end
            axis = np.eye(len(self.start), dtype=np.float32)[np.abs(self.start).argmin()]
            tangent = axis - (axis @ self.start) * self.start
        return normalise(tangent)

    def points(self, fractions: NDArray[np.float64]) -> Vectors:
        """The points, (fractions, dimension), at fractions of the angle."""
        angles = fractions[:, None] * self.angle
        points: Vectors = (np.cos(angles) * self.start + np.sin(angles) * self.tangent).astype(np.float32)
        return points

    def fractions(self, vectors: Vectors) -> NDArray[np.float64]:
        """The fraction of the angle, 0…1, at which each vector projects onto the circle; that of the nearer
        end where it lies beyond the ends."""
        if self.angle < 1e-3:
            return np.zeros(len(vectors))
        angles = np.arctan2(vectors @ self.tangent, vectors @ self.start)
        beyond_end = angles < (self.angle - 2 * np.pi) / 2
        return np.clip(np.where(beyond_end, 1, angles / self.angle), 0, 1)


def spread(arc: Arc, targets: NDArray[np.float64], vectors: Vectors) -> NDArray[np.intp]:
    """Choose a vector for each target fraction, in the order of the arc, each vector once.

    Minimises the sum of the distances from the target along the arc and from the arc, by dynamic programming.
    """
    fractions = arc.fractions(vectors)
    order = np.argsort(fractions, kind="stable")
    fractions = fractions[order]
    off_arc = np.arccos(np.clip((vectors[order] * arc.points(fractions)).sum(1), -1, 1)) / np.pi
    lowest = np.full(len(order), 0.0)  # cost of the best sequence so far that ends before each vector
    predecessors = []
    for target in targets:
        cost = lowest + np.abs(fractions - target) + off_arc  # of the best sequence that ends at each vector
        least = np.minimum.accumulate(cost)
        position = np.maximum.accumulate(np.where(cost == least, np.arange(len(cost)), 0))
        predecessors.append(position)
        lowest = np.concatenate([[np.inf], least[:-1]])
    chosen, last = [], len(order) - 1
    for position in reversed(predecessors):
        chosen.append(position[last])
        last = position[last] - 1
    return order[chosen[::-1]]


async def playlist(searcher: Searcher, seeds: Sequence[Seed], options: RankingOptions) -> list[Row]:
    """Tracks that continue a playlist: those recommended for its seeds, ordered so that each is the most
    similar of the rest to the one before it, beginning with the last seed. Raises UnknownTrack."""
    recommended = await recommend(searcher, seeds, [], options)
    track_ids = [seeds[-1].track_id, *(item.track["track_id"] for item in recommended)]
    tracks = await find(searcher, track_ids)
    order = continuation_order(tracks.vectors)
    return [recommended[position - 1].track for position in order]


def continuation_order(vectors: Vectors) -> list[int]:
    """The rows of vectors but the first, each the most similar of the rest to the one before it."""
    cosines = vectors @ vectors.T  # (before, after)
    remaining = np.ones(len(vectors), bool)
    remaining[0] = False
    order = [0]
    while remaining.any():
        order.append(int(np.where(remaining, cosines[order[-1]], -np.inf).argmax()))
        remaining[order[-1]] = False
    return order[1:]
