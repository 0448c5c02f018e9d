"""Listeners: do the neighbours of a track share its playlists, and do they continue playlists?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.evaluation.clusters import kmeans
from songray.evaluation.intervals import Observations
from songray.evaluation.sample import Sample
from songray.keys import sample_rank
from songray.learning.factorize import FactorizeConfig, als, read_entries
from songray.learning.scale import unit
from songray.library import Library, Vectors

if TYPE_CHECKING:  # it is imported in functions: jobs import this module
    import scipy.sparse

METRICS = {
    "overlap": "the share of a track's ten nearest that are among its ten nearest by collaborative factors",
    "r_precision": "the share that continues the playlist of the first r tracks, where r continue it",
    "ndcg": "normalised discounted cumulative gain of all tracks",
    "clicks": "how often a listener asks for ten more before the first track that continues the playlist; at "
    "most 51",
}
MOST_ENTRIES = 5_000_000  # of playlists, a random sample of whole ones
HELD_OUT_SHARE = 1 / 3  # of the playlists, which are continued
LEAST_TRACKS = 4  # of a playlist that is continued, among the tracks that are compared
NEIGHBOURS = 10
FACTORS = 64
MOST_CLICKS = 51  # as the Million Playlist Dataset's challenge defines them (Chen et al., 2018)
MOST_PLAYLISTS = 2000  # that are continued
PAIR_TRACKS = 30  # of a playlist, whose pairs are joined: a random sample
DEGENERATE_SHARE = 0.8  # of the tracks in one community


@dataclass(frozen=True)
class Listening:
    """The playlists of the tracks of a sample: those that are known, and others that are to be continued."""

    known: scipy.sparse.csr_array  # (playlists, tracks)
    continued: list[NDArray[np.int64]]  # positions of tracks, in order
    factored: NDArray[np.int64]  # positions of the tracks in two known playlists or more
    factors: Vectors  # unit vectors of these, by alternating least squares

    @property
    def frequency(self) -> NDArray[np.int64]:
        """The number of known playlists of each track."""
        counts: NDArray[np.int64] = np.diff(self.known.tocsc().indptr)
        return counts


def read_listening(library: Library, tracks: Sample) -> Listening | None:
    """None where fewer than ten playlists hold four of the tracks, or too few tracks are in two."""
    limits = FactorizeConfig(max_entries=MOST_ENTRIES, factors=FACTORS)
    entries = read_entries(library.table("playlists"), limits)
    ids = pa.array([row["track_id"] for row in tracks.rows], pa.string())
    position = pa.compute.index_in(entries["track_id"], ids)
    entries = entries.append_column("track", position).filter(position.is_valid())
    by_playlist = entries.group_by("playlist_id", use_threads=False).aggregate([("track", "list")])
    names = by_playlist["playlist_id"].to_pylist()
    playlists = [_first_of_each(np.array(own, np.int64)) for own in by_playlist["track_list"].to_pylist()]
    is_held_out = [sample_rank("continuation", name) < HELD_OUT_SHARE for name in names]
    pairs = list(zip(playlists, is_held_out, strict=True))
    continued = [own for own, held_out in pairs if held_out and own.size >= LEAST_TRACKS][:MOST_PLAYLISTS]
    known = [own for own, held_out in pairs if not held_out]
    if len(continued) < NEIGHBOURS or not known:
        return None
    matrix = _incidence(known, len(tracks.rows))
    factored = np.flatnonzero(np.diff(matrix.tocsc().indptr) >= 2)
    if factored.size <= NEIGHBOURS:
        return None
    limits = replace(limits, factors=min(FACTORS, factored.size // 4))
    return Listening(matrix, continued, factored, unit(als(matrix[:, factored], limits)))


def _first_of_each(tracks: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first = np.unique(tracks, return_index=True)
    return tracks[np.sort(first)]


def _incidence(playlists: list[NDArray[np.int64]], tracks: int) -> scipy.sparse.csr_array:
    import scipy.sparse

    ends = np.cumsum([0, *map(len, playlists)])
    ones = np.ones(ends[-1], np.float32)
    return scipy.sparse.csr_array((ones, np.concatenate(playlists), ends), (len(playlists), tracks))


def agreement(vectors: Vectors, listening: Listening, sample: Sample) -> dict[str, Observations]:
    """Collaborative neighbours, and continuations of playlists, by unit vectors, (tracks, dimension).

    A playlist is continued by its tracks' mean vector: given is its first half, relevant the second one. The
    same is given for relevant tracks that are in more known playlists than the median, and for the others.
    """
    frequency = listening.frequency
    is_frequent = frequency > np.median(frequency)
    every = np.ones(len(frequency), bool)
    parts = {"": every, "-of-frequent-tracks": is_frequent, "-of-rare-tracks": ~is_frequent}
    continued = continuations(vectors, listening, list(parts.values()))
    tasks = {f"playlist-continuation{part}": each for part, each in zip(parts, continued, strict=True)}
    tasks = {"collaborative-neighbours": overlap(vectors, listening, sample), **tasks}
    return {name: each for name, each in tasks.items() if each is not None}


def overlap(vectors: Vectors, listening: Listening, sample: Sample) -> Observations:
    """The overlap of the ten nearest by vectors and by collaborative factors, among tracks that have both."""
    from songray.evaluation.metrics import nearest

    tracks = listening.factored[:10_000]
    pair = [nearest(each, NEIGHBOURS) for each in (vectors[tracks], listening.factors[: len(tracks)])]
    shared = [len(np.intersect1d(left, right)) for left, right in zip(*pair, strict=True)]
    count = min(NEIGHBOURS, len(tracks) - 1)
    values = {"overlap": np.array(shared) / count}
    return Observations(values, sample.artists[tracks], count / (len(tracks) - 1))


def continuations(
    vectors: Vectors, listening: Listening, parts: Sequence[NDArray[np.bool_]]
) -> list[Observations | None]:
    """How well playlists are continued, among the tracks of each part. None where no playlist can be."""
    rows: list[list[tuple[float, ...]]] = [[] for _ in parts]  # of each playlist: its number and its values
    for number, playlist in enumerate(listening.continued):
        given, rest = np.split(playlist, [len(playlist) // 2])
        cosines = vectors @ vectors[given].mean(axis=0)
        for part, found in zip(parts, rows, strict=True):
            relevant = rest[part[rest]]
            if relevant.size:
                is_candidate = part.copy()
                is_candidate[given] = False
                found.append((number, *_values(cosines, is_candidate, relevant)))
    return [_observations(found) if found else None for found in rows]


def _values(
    cosines: NDArray[np.float32], is_candidate: NDArray[np.bool_], relevant: NDArray[np.int64]
) -> tuple[float, ...]:
    """R-precision, NDCG, clicks and chance of the candidates by descending cosine. The rank of a relevant one
    is the number of those before it, so that nothing is sorted."""
    own = cosines[is_candidate]
    positions = (np.cumsum(is_candidate) - 1)[relevant]
    before = [(own > own[p]).sum() + (own[:p] == own[p]).sum() for p in positions]
    ranks = np.sort(np.array(before, np.int64))  # from 0
    ideal = (1 / np.log2(np.arange(2, relevant.size + 2))).sum()
    gain = (1 / np.log2(ranks + 2)).sum()
    clicks = min(int(ranks[0]) // NEIGHBOURS, MOST_CLICKS)
    return float((ranks < relevant.size).mean()), float(gain / ideal), clicks, relevant.size / len(own)


def _observations(rows: list[tuple[float, ...]]) -> Observations:
    numbers, *columns, chances = np.array(rows, float).T
    values = dict(zip(("r_precision", "ndcg", "clicks"), columns, strict=True))
    return Observations(values, numbers.astype(np.int64), float(chances.mean()))


@dataclass(frozen=True)
class Communities:
    """Tracks that playlists join, in communities of their graph."""

    tracks: NDArray[np.int64]  # positions, of the largest connected component
    labels: dict[str, NDArray[np.int64]]  # by method, of these tracks

    def remark(self, method: str) -> str:
        """Why the communities are degenerate, or ""."""
        sizes = np.sort(np.bincount(self.labels[method]))[::-1]
        if len(sizes) < 2 or sizes[0] > DEGENERATE_SHARE * sizes.sum():
            return f"{method}: degenerate, {sizes[0]} of {sizes.sum()} tracks are in one community"
        return ""


def communities(listening: Listening) -> Communities | None:
    """The leading eigenvector's communities (Newman, 2006) and Leiden's (Traag et al., 2019), of the graph
    whose edges join tracks of a known playlist of n tracks with the weight 1 / (n − 1). None without
    igraph."""
    try:
        import igraph
    except ImportError:
        return None
    pairs = _pairs(listening.known)
    edges = np.stack([pairs.row, pairs.col], axis=1)
    graph = igraph.Graph(pairs.shape[0], edges, edge_attrs={"weight": pairs.data})
    tracks = np.array(max(graph.connected_components(), key=len))
    component = graph.induced_subgraph(tracks.tolist())
    igraph.set_random_number_generator(random.Random(0))
    methods: dict[str, Any] = {
        "leading eigenvector": component.community_leading_eigenvector(weights="weight"),
        "Leiden": component.community_leiden(objective_function="modularity", weights="weight"),
    }
    return Communities(tracks, {name: np.array(found.membership) for name, found in methods.items()})


def _pairs(known: scipy.sparse.csr_array) -> scipy.sparse.coo_array:
    """The weight of each pair of tracks that share a playlist, (tracks, tracks), above the diagonal."""
    import scipy.sparse

    generator = np.random.default_rng(0)
    parts = np.split(known.indices, known.indptr[1:-1])
    sampled = [generator.permutation(own)[:PAIR_TRACKS] for own in parts if own.size > 1]
    chosen = _incidence(sampled, known.shape[1])
    weights = scipy.sparse.diags_array(1 / (np.diff(chosen.indptr) - 1.0))
    return scipy.sparse.coo_array(scipy.sparse.triu(chosen.T @ weights @ chosen, 1))


def compare_communities(vectors: Vectors, found: Communities) -> dict[str, float]:
    """The adjusted mutual information of communities and as many k-means clusters, by method."""
    from sklearn.metrics import adjusted_mutual_info_score

    scores: dict[str, float] = {}
    for name, labels in found.labels.items():
        count = len(np.unique(labels))
        scores[f"{name}: communities"] = count
        if count > 1:
            clusters = kmeans(vectors[found.tracks], count)
            scores[f"{name}: AMI"] = float(adjusted_mutual_info_score(labels, clusters))
    return scores
