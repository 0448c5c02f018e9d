"""Ranks the neighbours of seeds: a Searcher (an index in this process, or the slots of the service) finds
candidates, and these functions choose among them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from numpy.typing import NDArray

from songray.errors import QueryError, UnknownTrack
from songray.library import Row, Vectors
from songray.search.candidates import CANDIDATE, Candidates, Place
from songray.search.filters import Filters

SAME_COSINE = 0.995  # least cosine of two ids of one recording, where title and duration agree
SAME_SECONDS = 3.0
MIN_LENGTH = 0.01  # of a sum of seeds, relative to its weights; rounding to float16 displaces it by 0.0003
NEIGHBOURS_BY_DURATION = 4  # tracks of the same title, in order of duration, that are compared with each


class Searcher(Protocol):
    """Finds tracks and their neighbours."""

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        """For each id that the index contains an array of one CANDIDATE, without a cosine."""

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        """(places, dimension), of length 1."""

    async def nearest(self, queries: Vectors, k: int, filters: Filters) -> list[Candidates]:
        """For each query, (queries, dimension), the k nearest that match the filters, nearest first, or all
        where fewer match."""

    async def described(self, weights: dict[str, float], k: int, filters: Filters) -> Candidates:
        """The k tracks that match the filters and whose tags fit best, best first; Tags.score takes the place
        of the cosine."""

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        """The catalogue's description of each track."""


@dataclass(frozen=True)
class Seed:
    track_id: str
    weight: float = 1.0


@dataclass(frozen=True)
class RankingOptions:
    """How many recommendations are returned, and in which order.

    They are sorted by descending similarity where `diversity` is 0. Where it is above 0 they are not: each is
    then chosen by its similarity and by its difference from those before it.
    """

    k: int = 10
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0  # 0: by similarity alone … 1: by difference from each other alone
    per_artist: int = 3  # at most; 0: no limit
    per_album: int = 2


NearestSeed = tuple[str | None, float | None]  # id, similarity to it


@dataclass(frozen=True)
class Recommendation:
    track: Row
    similarity: float  # to the query, 0…1: see `similarity`
    cosine: float | None  # to the query; None where it is a description
    nearest_seed: str | None  # the liked track with the highest similarity
    nearest_seed_similarity: float | None


@dataclass(frozen=True)
class Seeds:
    """Tracks of the index, in the order in which they were requested."""

    ids: list[str]
    candidates: Candidates
    vectors: Vectors  # (tracks, dimension)


def similarity(cosine: NDArray[np.floating]) -> NDArray[np.float64]:
    """(cosine + 1) / 2, in 0…1: it increases strictly with the cosine, by which results are ranked, and is
    comparable between queries. Computed in float64 from the stored float32."""
    return np.clip((np.asarray(cosine, np.float64) + 1) / 2, 0, 1)


async def find(searcher: Searcher, track_ids: Sequence[str]) -> Seeds:
    """Raises UnknownTrack, which names all ids that the index does not contain."""
    by_id = await searcher.find(track_ids)
    unknown = [track_id for track_id in track_ids if track_id not in by_id]
    if unknown:
        raise UnknownTrack(f"not in the index: {', '.join(unknown)}")
    candidates = np.concatenate([by_id[track_id] for track_id in track_ids] or [np.empty(0, CANDIDATE)])
    return Seeds(list(track_ids), candidates, await searcher.vectors(places(candidates)))


async def similar(
    searcher: Searcher, track_id: str, options: RankingOptions
) -> tuple[Row, list[Recommendation]]:
    """The row of a track, and the tracks most similar to it, itself excluded. Raises UnknownTrack."""
    seeds = await find(searcher, [track_id])
    nearest = partial(_nearest, searcher, seeds.vectors[0], options.filters)
    chosen, _ = await _choose(searcher, nearest, options, seeds.candidates)
    row, *rows = await searcher.rows(places(np.concatenate([seeds.candidates, chosen])))
    similarities = similarity(chosen["cosine"]).tolist()
    return row, _recommendations(rows, chosen, [(track_id, value) for value in similarities])


async def recommend(
    searcher: Searcher, like: Sequence[Seed], unlike: Sequence[Seed], options: RankingOptions
) -> list[Recommendation]:
    """The tracks most similar to the weighted sum of the liked vectors less that of the unliked ones
    (arithmetic of embeddings). Raises UnknownTrack, and QueryError where the sum has no direction."""
    seeds = await find(searcher, [seed.track_id for seed in [*like, *unlike]])
    weights = np.array([seed.weight for seed in like] + [-seed.weight for seed in unlike], np.float32)
    query = weights @ seeds.vectors
    if np.linalg.norm(query) < MIN_LENGTH * np.abs(weights).sum():
        raise QueryError(
            "the vectors of the given tracks cancel out, as where a track is both liked and disliked: no "
            "direction is left to search in; leave one of them out, or change the weights"
        )
    liked = Seeds(seeds.ids[: len(like)], seeds.candidates[: len(like)], seeds.vectors[: len(like)])
    return await nearest_to(searcher, query, options, liked, without=seeds.candidates)


async def nearest_to(
    searcher: Searcher,
    query: Vectors,  # (dimension,), of any length
    options: RankingOptions,
    liked: Seeds | None = None,
    without: Candidates | None = None,
) -> list[Recommendation]:
    """The tracks most similar to a vector, but for those of `without` and other ids of their recordings. Each
    names its nearest seed among the liked tracks. Raises QueryError where the vector has no direction."""
    excluded = np.empty(0, CANDIDATE) if without is None else distinct(without)
    nearest = partial(_nearest, searcher, normalise(query), options.filters)
    chosen, vectors = await _choose(searcher, nearest, options, excluded)
    rows = await searcher.rows(places(chosen))
    nearest_seeds: list[NearestSeed] = [(None, None)] * len(rows)
    if liked:
        if vectors is None:
            vectors = await searcher.vectors(places(chosen))
        to_liked = similarity(vectors @ liked.vectors.T)  # (chosen, liked)
        nearest_seeds = [(liked.ids[values.argmax()], float(values.max())) for values in to_liked]
    return _recommendations(rows, chosen, nearest_seeds)


def _recommendations(
    rows: Sequence[Row], chosen: Candidates, nearest_seeds: Sequence[NearestSeed]
) -> list[Recommendation]:
    similarities = similarity(chosen["cosine"]).tolist()
    return [
        Recommendation(row, value, cosine, *seed)
        for row, value, cosine, seed in zip(
            rows, similarities, chosen["cosine"].tolist(), nearest_seeds, strict=True
        )
    ]


async def described(
    searcher: Searcher, weights: dict[str, float], options: RankingOptions
) -> list[Recommendation]:
    """The tracks whose tags fit a description best, by the weights of labels; their similarity is to the
    description."""
    best = partial(_best_described, searcher, weights, options.filters)
    chosen, _ = await _choose(searcher, best, options, np.empty(0, CANDIDATE))
    rows = await searcher.rows(places(chosen))
    return [replace(item, cosine=None) for item in _recommendations(rows, chosen, [(None, None)] * len(rows))]


async def _nearest(searcher: Searcher, query: Vectors, filters: Filters, depth: int) -> Candidates:
    (near,) = await searcher.nearest(query[None], depth, filters)
    return near


async def _best_described(
    searcher: Searcher, weights: dict[str, float], filters: Filters, depth: int
) -> Candidates:
    return await searcher.described(weights, depth, filters)


async def _choose(
    searcher: Searcher,
    best: Callable[[int], Awaitable[Candidates]],  # so many of the best, by descending score
    options: RankingOptions,
    excluded: Candidates,
) -> tuple[Candidates, Vectors | None]:
    """The candidates that are recommended, in order, and their vectors where they were needed.

    Requests more candidates until k are chosen or the index has no more.
    """
    depth = 4 * options.k + 2 * len(excluded) + 16
    while True:
        near = await best(depth)
        candidates = distinct(excluded, near)
        pairs = possible_pairs(candidates)
        vectors = await searcher.vectors(places(candidates)) if options.diversity or len(pairs) else None
        groups = recordings(candidates, pairs, vectors)
        picks = pick(candidates, len(excluded), groups, vectors, options)
        if len(picks) == options.k or len(near) < depth:
            return candidates[picks], None if vectors is None else vectors[picks]
        depth *= 4


def pick(
    candidates: Candidates,
    excluded: int,
    groups: NDArray[np.int32],  # (candidates,), the number of each one's recording
    vectors: Vectors | None,  # (candidates, dimension); needed for diversity
    options: RankingOptions,
) -> list[int]:
    """Rows of the recommended candidates, in order: at most one of each recording, and none of the recordings
    of the first candidates, `excluded` in number.

    The next one has the highest (1 − diversity) · cosine to the query − diversity · the highest cosine to one
    before it (maximal marginal relevance, Carbonell and Goldstein 1998).
    """
    cosines = candidates["cosine"].astype(np.float64)
    to_picked = np.full_like(cosines, -1)  # highest cosine to a candidate that was picked
    eligible = ~np.isin(groups, groups[:excluded])
    limits = ((candidates["artist"], options.per_artist), (candidates["album"], options.per_album))
    picks: list[int] = []
    while len(picks) < options.k and eligible.any():
        marginal = (1 - options.diversity) * cosines - options.diversity * to_picked
        best = int(np.where(eligible, marginal, -np.inf).argmax())
        picks.append(best)
        eligible &= groups != groups[best]
        for keys, limit in limits:
            if limit and keys[best] and np.count_nonzero(keys[picks] == keys[best]) >= limit:
                eligible &= keys != keys[best]
        if options.diversity and vectors is not None:
            to_picked = np.maximum(to_picked, vectors @ vectors[best])
    return picks


def distinct(*candidates: Candidates) -> Candidates:
    """Concatenate candidates, each track once, at its first position."""
    together = np.concatenate(candidates)
    _, first = np.unique(together["shard"].astype(np.int64) << 32 | together["label"], return_index=True)
    return together[np.sort(first)]


def possible_pairs(candidates: Candidates) -> NDArray[np.intp]:
    """Pairs of candidates, (pairs, 2), that may be one recording: they share the title, and the duration
    where both are known."""
    order = np.lexsort((candidates["duration"], candidates["title"]))
    title, duration = candidates["title"][order], candidates["duration"][order]
    pairs = []
    for distance in range(1, NEIGHBOURS_BY_DURATION + 1):
        differs = np.abs(duration[distance:] - duration[:-distance]) > SAME_SECONDS  # False for nan
        same_title = (title[distance:] == title[:-distance]) & (title[distance:] != 0)
        first = np.flatnonzero(same_title & ~differs)
        pairs.append(np.stack([order[first], order[first + distance]], axis=1))
    return np.concatenate(pairs)


def recordings(candidates: Candidates, pairs: NDArray[np.intp], vectors: Vectors | None) -> NDArray[np.int32]:
    """The number of each candidate's recording. Candidates share it where the catalogue says so, and where
    they are a pair whose vectors agree."""
    if vectors is not None:
        cosines = np.einsum("pd,pd->p", vectors[pairs[:, 0]], vectors[pairs[:, 1]])
        pairs = pairs[cosines >= SAME_COSINE]
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


def places(candidates: NDArray[np.void]) -> list[Place]:
    """The places of candidates or points."""
    return list(zip(candidates["shard"].tolist(), candidates["label"].tolist(), strict=True))


def normalise(vector: Vectors) -> Vectors:
    """The vector at length 1. Raises QueryError where it has no direction: it is 0 or not finite."""
    length = np.linalg.norm(vector.astype(np.float64))
    if not 1e-6 < length < np.inf:
        raise QueryError(f"the query's vector has the length {length:g}: it cannot be compared with tracks")
    scaled: Vectors = (vector / length).astype(np.float32)
    return scaled
