"""Seeds → ranked tracks, ways and playlists: the questions of a listener; pure, no Ray.

They are asked of a Searcher, which is an index in this process, or all the shards of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from numpy.typing import NDArray

from songray.errors import NotEnoughTracks, UnknownTrack
from songray.library import Vectors
from songray.search.shard import CANDIDATE, Candidates, Filters, Place, Row

SAME_SOUND = 0.995  # cosine of what may be one recording, if title and duration agree
SAME_SECONDS = 3.0
NEIGHBOURS_BY_LENGTH = 4  # of one title, in order of duration, that are compared
WAY_BREADTH = 16  # candidates a step of a way


class Searcher(Protocol):
    """What knows the tracks and finds neighbours."""

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        """Of those ids that are known: the one CANDIDATE each, whose cosine means nothing."""

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        """(places, dimension), of length 1"""

    async def nearest(self, queries: Vectors, k: int, filters: Filters) -> list[Candidates]:
        """For each query, (queries, dimension), the k nearest that fit, nearest first, or all there are."""

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        """What the catalogue says of them."""


@dataclass(frozen=True)
class Seed:
    track_id: str
    weight: float = 1.0


@dataclass(frozen=True)
class RankingOptions:
    """How many tracks are wanted, and which."""

    k: int = 10
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0  # 0: the most similar … 1: as different from each other as can be
    per_artist: int = 3  # at most; 0: any number
    per_album: int = 2


@dataclass(frozen=True)
class Recommendation:
    track: Row
    similarity: float  # with what was asked for, (1 + cosine) / 2
    nearest_seed: str | None  # the liked track that sounds most like it
    nearest_seed_similarity: float | None


@dataclass(frozen=True)
class Seeds:
    """Tracks that were found, in the order in which they were named."""

    ids: list[str]
    candidates: Candidates
    vectors: Vectors  # (tracks, dimension)


def similarity(cosine: float) -> float:
    """0 (opposite) … 1 (the same), comparable between queries."""
    return min(1.0, max(0.0, (1 + cosine) / 2))


async def find(searcher: Searcher, track_ids: Sequence[str]) -> Seeds:
    """Raises UnknownTrack, naming all that are not there."""
    found = await searcher.find(track_ids)
    unknown = [track_id for track_id in track_ids if track_id not in found]
    if unknown:
        raise UnknownTrack(f"not in the index: {', '.join(unknown)}")
    candidates = np.concatenate([found[track_id] for track_id in track_ids] or [np.empty(0, CANDIDATE)])
    return Seeds(list(track_ids), candidates, await searcher.vectors(places(candidates)))


async def similar(searcher: Searcher, track_id: str, wish: RankingOptions) -> list[Recommendation]:
    """What sounds most like a track, without itself."""
    return await recommend(searcher, [Seed(track_id)], [], wish)


async def recommend(
    searcher: Searcher, like: Sequence[Seed], unlike: Sequence[Seed], wish: RankingOptions
) -> list[Recommendation]:
    """What sounds like some tracks and not like others: what is nearest to the sum of their vectors, those
    that are unliked subtracted (arithmetic of embeddings). Raises UnknownTrack."""
    seeds = await find(searcher, [seed.track_id for seed in [*like, *unlike]])
    weights = np.array([seed.weight for seed in like] + [-seed.weight for seed in unlike], np.float32)
    liked = Seeds(seeds.ids[: len(like)], seeds.candidates[: len(like)], seeds.vectors[: len(like)])
    return await nearest_to(searcher, weights @ seeds.vectors, wish, liked, without=seeds.candidates)


async def nearest_to(
    searcher: Searcher,
    query: Vectors,  # (dimension,), of any length
    wish: RankingOptions,
    liked: Seeds | None = None,
    without: Candidates | None = None,
) -> list[Recommendation]:
    """What is nearest to a vector; each with the one of the liked tracks that it sounds most like."""
    without = np.empty(0, CANDIDATE) if without is None else distinct(without)
    chosen, vectors = await _chosen(searcher, unit(query), wish, without)
    rows = await searcher.rows(places(chosen))
    cosines = chosen["cosine"].tolist()
    nearest_seed: list[tuple[str | None, float | None]] = [(None, None)] * len(rows)
    if liked and len(liked.ids) == len(without) == 1:  # the query is the seed
        nearest_seed = [(liked.ids[0], similarity(cosine)) for cosine in cosines]
    elif liked:
        if vectors is None:
            vectors = await searcher.vectors(places(chosen))
        to_liked = vectors @ liked.vectors.T  # (chosen, liked)
        nearest_seed = [(liked.ids[best.argmax()], similarity(float(best.max()))) for best in to_liked]
    return [
        Recommendation(row, similarity(cosine), *reason)
        for row, cosine, reason in zip(rows, cosines, nearest_seed, strict=True)
    ]


async def _chosen(
    searcher: Searcher, query: Vectors, wish: RankingOptions, without: Candidates
) -> tuple[Candidates, Vectors | None]:
    """The candidates that are answered, best first, and their vectors where they had to be looked at. More
    are asked for until enough are left."""
    depth = 4 * wish.k + 2 * len(without) + 16
    while True:
        (near,) = await searcher.nearest(query[None], depth, wish.filters)
        candidates = distinct(without, near)
        pairs = alike(candidates)
        vectors = await searcher.vectors(places(candidates)) if wish.diversity or len(pairs) else None
        picks = pick(candidates, len(without), recordings(candidates, pairs, vectors), vectors, wish)
        if len(picks) == wish.k or len(near) < depth:
            return candidates[picks], None if vectors is None else vectors[picks]
        depth *= 4


def pick(
    candidates: Candidates,
    seeds: int,
    groups: NDArray[np.int32],
    vectors: Vectors | None,
    wish: RankingOptions,
) -> list[int]:
    """Which of the candidates are answered, best first; never the first ones, `seeds` of them, nor one of
    their recordings, nor two of one recording.

    Best is what is near, for a track that is near to few: cosine − hubness / 2 (cross-domain similarity local
    scaling, Conneau et al. 2018), so that no track is everybody's neighbour. With diversity, what is also
    unlike those that were chosen before it (maximal marginal relevance, Carbonell and Goldstein 1998), which
    takes the candidates' vectors.
    """
    relevance = candidates["cosine"] - candidates["hubness"] / 2
    likeness = np.full_like(relevance, -1)  # cosine with the one of those chosen before that is most alike
    left = ~np.isin(groups, groups[:seeds])
    limits = ((candidates["artist"], wish.per_artist), (candidates["album"], wish.per_album))
    picks: list[int] = []
    while len(picks) < wish.k and left.any():
        score = (1 - wish.diversity) * relevance - wish.diversity * likeness
        best = int(np.where(left, score, -np.inf).argmax())
        picks.append(best)
        left &= groups != groups[best]
        for keys, most in limits:
            if most and keys[best] and np.count_nonzero(keys[picks] == keys[best]) >= most:
                left &= keys != keys[best]
        if wish.diversity and vectors is not None:
            likeness = np.maximum(likeness, vectors @ vectors[best])
    return picks


def distinct(*candidates: Candidates) -> Candidates:
    """Each track once, in the order in which they come first."""
    together = np.concatenate(candidates)
    _, first = np.unique(together["shard"].astype(np.int64) << 32 | together["label"], return_index=True)
    return together[np.sort(first)]


def alike(candidates: Candidates) -> NDArray[np.intp]:
    """Pairs, (pairs, 2), that share the title, and the duration where it is known: one recording, perhaps."""
    order = np.lexsort((candidates["duration"], candidates["title"]))
    title, duration = candidates["title"][order], candidates["duration"][order]
    pairs = []
    for apart in range(1, NEIGHBOURS_BY_LENGTH + 1):
        differs = np.abs(duration[apart:] - duration[:-apart]) > SAME_SECONDS  # unknown ones do not
        first = np.flatnonzero((title[apart:] == title[:-apart]) & (title[apart:] != 0) & ~differs)
        pairs.append(np.stack([order[first], order[first + apart]], axis=1))
    return np.concatenate(pairs)


def recordings(candidates: Candidates, pairs: NDArray[np.intp], vectors: Vectors | None) -> NDArray[np.int32]:
    """For each candidate the number of its recording: what the catalogue says is one, and those of the pairs
    that sound the same."""
    if vectors is not None:
        cosines = np.einsum("pd,pd->p", vectors[pairs[:, 0]], vectors[pairs[:, 1]])
        pairs = pairs[cosines >= SAME_SOUND]
    keys = candidates["recording"]
    order = np.argsort(keys, kind="stable")
    first = np.flatnonzero((keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != 0))
    pairs = np.concatenate([pairs, np.stack([order[first], order[first + 1]], axis=1)])
    if not len(pairs):
        return np.arange(len(candidates), dtype=np.int32)
    links = (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1]))
    graph = scipy.sparse.coo_array(links, shape=(len(candidates),) * 2)
    groups: NDArray[np.int32] = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    return groups


async def path(searcher: Searcher, start: str, end: str, steps: int, filters: Filters) -> list[Row]:
    """A way from one track to another in `steps` tracks, both ends among them: each is once in it, each is
    further on along the great circle between the ends than the one before it, and they lie as evenly as
    the catalogue allows. Raises UnknownTrack, and NotEnoughTracks where there are not enough tracks."""
    ends = await find(searcher, [start, end])
    arc = Arc(*ends.vectors)
    targets = np.linspace(0, 1, steps)[1:-1]
    between = await _along(searcher, ends, arc.at(targets), filters)
    chosen = evenly(arc, targets, await searcher.vectors(places(between)))
    first, last = places(ends.candidates)
    return await searcher.rows([first, *places(between[chosen]), last])


async def _along(searcher: Searcher, ends: Seeds, points: Vectors, filters: Filters) -> Candidates:
    """Tracks that are near some points, at least as many as there are points."""
    breadth = WAY_BREADTH
    while True:
        found = await searcher.nearest(points, breadth, filters)
        between = await _between(searcher, ends, found)
        if len(between) >= len(points):
            return between
        if all(len(one) < breadth for one in found):
            raise NotEnoughTracks(
                f"{len(points)} tracks are wanted between the ends, and {len(between)} are there"
            )
        breadth *= 4


async def _between(searcher: Searcher, ends: Seeds, found: list[Candidates]) -> Candidates:
    """Of what was found near the way, one of each recording, and none of the ends'."""
    candidates = distinct(ends.candidates, *found)
    pairs = alike(candidates)
    vectors = await searcher.vectors(places(candidates)) if len(pairs) else None
    _, first = np.unique(recordings(candidates, pairs, vectors), return_index=True)
    return candidates[np.sort(first[first >= len(distinct(ends.candidates))])]


@dataclass(frozen=True)
class Arc:
    """The great circle from one vector of length 1 to another."""

    start: Vectors  # (dimension,)
    end: Vectors

    @property
    def angle(self) -> float:
        return float(np.arccos(np.clip(self.start @ self.end, -1, 1)))

    @property
    def aside(self) -> Vectors:
        """Of length 1, at right angles to the start, towards the end."""
        aside = self.end - (self.end @ self.start) * self.start
        if np.linalg.norm(aside) < 1e-4:  # the same place, or opposite ones: any direction will do
            axis = np.eye(len(self.start), dtype=np.float32)[np.abs(self.start).argmin()]
            aside = axis - (axis @ self.start) * self.start
        return unit(aside)

    def at(self, share: NDArray[np.float64]) -> Vectors:
        """Points on it, (points, dimension), at some shares of the way."""
        angles = share[:, None] * self.angle
        points: Vectors = (np.cos(angles) * self.start + np.sin(angles) * self.aside).astype(np.float32)
        return points

    def share(self, vectors: Vectors) -> NDArray[np.float64]:
        """How far along it each of some vectors lies: 0 at the start, 1 at the end."""
        if self.angle < 1e-3:
            return np.zeros(len(vectors))
        angles = np.arctan2(vectors @ self.aside, vectors @ self.start)
        # What lies beyond an end lies at the end that is nearer.
        behind = angles < (self.angle - 2 * np.pi) / 2
        return np.clip(np.where(behind, 1, angles / self.angle), 0, 1)


def evenly(arc: Arc, targets: NDArray[np.float64], vectors: Vectors) -> NDArray[np.intp]:
    """Which vectors, one a target, go along the arc, never back, closest to the targets: the least sum of
    how far each is from its target along the arc, and from the arc (dynamic programming)."""
    shares = arc.share(vectors)
    order = np.argsort(shares, kind="stable")
    shares = shares[order]
    off = np.arccos(np.clip((vectors[order] * arc.at(shares)).sum(1), -1, 1)) / np.pi
    best = np.full(len(order), 0.0)  # the least cost of a way so far that ends before a vector
    came_from = []
    for target in targets:
        cost = best + np.abs(shares - target) + off  # of ways that end at each vector
        least = np.minimum.accumulate(cost)
        where = np.maximum.accumulate(np.where(cost == least, np.arange(len(cost)), 0))
        came_from.append(where)
        best = np.concatenate([[np.inf], least[:-1]])
    chosen, last = [], len(order) - 1
    for where in reversed(came_from):
        chosen.append(where[last])
        last = where[last] - 1
    return order[chosen[::-1]]


async def playlist(searcher: Searcher, seeds: Sequence[Seed], wish: RankingOptions) -> list[Row]:
    """Tracks that continue a playlist, in an order that flows: from its last track on, each is followed by
    the one of the rest that sounds most like it. Raises UnknownTrack."""
    found = await recommend(searcher, seeds, [], wish)
    tracks = await find(searcher, [seeds[-1].track_id, *(one.track["track_id"] for one in found)])
    return [found[number - 1].track for number in chain(tracks.vectors)]


def chain(vectors: Vectors) -> list[int]:
    """The order, from the first on, in which each is followed by the nearest of the rest; less the first."""
    cosines = vectors @ vectors.T
    left = np.ones(len(vectors), bool)
    left[0] = False
    order = [0]
    while left.any():
        order.append(int(np.where(left, cosines[order[-1]], -np.inf).argmax()))
        left[order[-1]] = False
    return order[1:]


def places(candidates: Candidates) -> list[Place]:
    return list(zip(candidates["shard"].tolist(), candidates["label"].tolist(), strict=True))


def unit(vector: Vectors) -> Vectors:
    """The same direction at length 1; where there is none, as of seeds that cancel out, the first axis."""
    length = float(np.linalg.norm(vector))
    if length < 1e-6:
        vector, length = np.eye(len(vector), dtype=np.float32)[0], 1.0
    scaled: Vectors = (vector / length).astype(np.float32)
    return scaled


async def examples(searcher: Searcher, tracks: Sequence[Row], k: int = 5) -> str:
    """The neighbours of a few tracks, and whether they share a genre, as text."""
    lines = []
    for seed in tracks:
        lines.append(f"\n{_line(seed)} sounds like")
        for found in await similar(searcher, seed["track_id"], RankingOptions(k=k)):
            same = "same style" if set(seed["genres"]) & set(found.track["genres"]) else "another style"
            verdict = f"  ({same})" if seed["genres"] else ""
            lines.append(f"  {found.similarity:.3f}  {_line(found.track)}{verdict}")
    return "\n".join(lines)


def _line(track: Row) -> str:
    artists = ", ".join(track["artist_names"]) or "unknown artist"
    genres = f" [{', '.join(track['genres'])}]" if track["genres"] else ""
    return f"{track['title']} – {artists}{genres}"
