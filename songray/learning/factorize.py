"""Reads playlists and tracks, writes factors: tracks that listeners put together lie near each other.

They are taught to a model that hears them (songray/models/factors.py), which can then place what nobody has
played yet.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import ray
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from songray.library import Library, Table, hash64, sample_rank

CONTEXT = 2  # neighbours on each side that count as heard together


@dataclass(frozen=True)
class FactorizeConfig:
    method: Literal["als", "item2vec"] = "als"
    """als: which playlists hold a track (alternating least squares on implicit feedback, BM25 weights);
    item2vec: which tracks stand beside it (the factorisation that word2vec does implicitly)."""
    factors: int = 64
    """Length of a vector."""
    iterations: int = 15
    """Of alternating least squares."""
    min_playlists: int = 2
    """Tracks in fewer playlists than this say nothing."""
    max_entries: int = 50_000_000
    """Entries of playlists that are used; of more, a sample of whole playlists. About 100 bytes each."""
    seed: int = 0
    """Of the sample and of where the factors start."""


@dataclass(frozen=True)
class Factorized:
    table: str
    version: int
    tracks: int
    playlists: int
    is_new: bool

    def __str__(self) -> str:
        done = "made" if self.is_new else "made before, of the same playlists"
        return f"factorize: {self.table}: {self.tracks} tracks in {self.playlists} playlists, {done}"


def factorize(library: Library, config: FactorizeConfig) -> Factorized:
    """Factorise the playlists as they are now, all together, as a new version; unchanged ones are left.

    It is one task's work, and its memory grows with the entries that are used.
    """
    output = library.table("factors", config.method)
    output.claim(asdict(config))
    task = ray.remote(_factorize).options(num_cpus=1)
    result: Factorized = ray.get(task.remote(library, output, config))
    return result


def _factorize(library: Library, output: Table, config: FactorizeConfig) -> Factorized:
    entries = sample(current(library.table("playlists")), config)
    if not entries.num_rows:
        raise ValueError("playlists is empty: run jobs/crawl.py on a source that has playlists first")
    checksum = hash64(*(f"{row['playlist_id']} {row['track_id']}" for row in entries.to_pylist()))
    before = newest(output)
    if before.num_rows and before["playlists"][0].as_py() == checksum:
        version = before["version"][0].as_py()
        return Factorized(output.name, version, before.num_rows, _playlists(entries), is_new=False)
    ids, factors = factorize_entries(entries, config)
    tracks = library.table("tracks").newest(["track_id", "track_key"])
    place = pa.compute.index_in(pa.array(ids), tracks["track_id"].combine_chunks())
    known = place.is_valid().to_numpy(zero_copy_only=False)
    version = before["version"][0].as_py() + 1 if before.num_rows else 1
    count = int(known.sum())
    rows = {
        "version": pa.repeat(pa.scalar(version, pa.int64()), count),
        "track_key": tracks["track_key"].take(place.drop_null()),
        "track_id": pa.array(ids[known]),
        "playlists": pa.repeat(pa.scalar(checksum, pa.int64()), count),
        "factors": pa.FixedSizeListArray.from_arrays(pa.array(factors[known].ravel()), config.factors),
    }
    output.append(pa.table(rows), f"{version:06d}")
    return Factorized(output.name, version, count, _playlists(entries), is_new=True)


def _playlists(entries: pa.Table) -> int:
    return int(pa.compute.count_distinct(entries["playlist_id"]).as_py())


def newest(table: Table) -> pa.Table:
    """The rows of the newest version."""
    rows = table.read()
    return rows.filter(pa.compute.equal(rows["version"], pa.compute.max(rows["version"])))


def current(playlists: Table) -> pa.Table:
    """The entries of every playlist in its newest version, in order. A version may have come in several
    crawls, where one was cut off."""
    rows = playlists.read(["playlist_id", "position", "crawl", "version", "track_id"]).sort_by("crawl")
    newest = rows.group_by("playlist_id", use_threads=False).aggregate([("version", "last")])
    place = pa.compute.index_in(rows["playlist_id"], newest["playlist_id"].combine_chunks())
    kept = rows.filter(pa.compute.equal(rows["version"], newest["version_last"].take(place)))
    entries = kept.group_by(["playlist_id", "position"], use_threads=False).aggregate([("track_id", "last")])
    entries = entries.rename_columns(["playlist_id", "position", "track_id"])
    return entries.sort_by([("playlist_id", "ascending"), ("position", "ascending")])


def sample(entries: pa.Table, config: FactorizeConfig) -> pa.Table:
    """All entries, or those of as many playlists, drawn by the hash of their id, as may be used."""
    if entries.num_rows <= config.max_entries:
        return entries
    share = config.max_entries / entries.num_rows
    names = entries["playlist_id"].unique().to_pylist()
    drawn = [name for name in names if sample_rank(str(config.seed), name) < share]
    return entries.filter(pa.compute.is_in(entries["playlist_id"], pa.array(drawn)))


def factorize_entries(
    entries: pa.Table, config: FactorizeConfig
) -> tuple[NDArray[np.str_], NDArray[np.float32]]:
    """Entries in order, with playlist_id and track_id → ids of tracks, and factors: (tracks, factors)."""
    ids, track = np.unique(
        entries["track_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True
    )
    names = entries["playlist_id"].to_numpy(zero_copy_only=False).astype(str)
    _, playlist = np.unique(names, return_inverse=True)
    held = scipy.sparse.coo_array((np.ones(len(track), np.float32), (playlist, track))).tocsr()
    held.data[:] = 1  # a track may come twice in a playlist
    enough = np.flatnonzero(held.sum(axis=0) >= config.min_playlists)
    if enough.size <= config.factors:
        raise ValueError(
            f"{enough.size} tracks are in {config.min_playlists} playlists or more, too few for "
            f"{config.factors} factors: lower --factors or --min-playlists"
        )
    if config.method == "als":
        return ids[enough], als(held[:, enough], config)
    number = np.full(len(ids), -1)
    number[enough] = np.arange(enough.size)
    return ids[enough], item2vec(playlist, number[track], enough.size, config)


def als(held: scipy.sparse.csr_array, config: FactorizeConfig) -> NDArray[np.float32]:
    """Factors of the columns of a matrix of playlists × tracks, by alternating least squares (Hu, Koren and
    Volinsky, 2008) under the weights of BM25 with the constants of Clothier and Benson (2021)."""
    import implicit.als  # here, since every worker that trains imports this module
    import implicit.nearest_neighbours

    weights = implicit.nearest_neighbours.bm25_weight(scipy.sparse.csr_matrix(held), K1=100, B=0.8)
    model = implicit.als.AlternatingLeastSquares(
        factors=config.factors, iterations=config.iterations, random_state=config.seed, num_threads=1
    )
    model.fit(weights.tocsr(), show_progress=False)
    factors: NDArray[np.float32] = model.item_factors
    return factors


def item2vec(
    playlist: NDArray[np.int64], track: NDArray[np.int64], tracks: int, config: FactorizeConfig
) -> NDArray[np.float32]:
    """Factors of tracks that stand near each other in playlists; entries in order, −1 for tracks left out.

    What word2vec with negative sampling learns is a factorisation of the matrix of pointwise mutual
    information (Levy and Goldberg, 2014); here it is factorised itself, its positive part, by a singular
    value decomposition, whose values are shared equally between the two sides.
    """
    pairs = []
    for distance in range(1, CONTEXT + 1):
        one, other = track[:-distance], track[distance:]
        near = (playlist[:-distance] == playlist[distance:]) & (one >= 0) & (other >= 0) & (one != other)
        pairs += [(one[near], other[near]), (other[near], one[near])]
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    together = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), (tracks, tracks)).tocsr().tocoo()
    alone = together.sum(axis=0)
    chance = alone[together.row] * alone[together.col] / together.sum()
    information = np.maximum(np.log(together.data / chance), 0)
    matrix = scipy.sparse.csr_array((information, (together.row, together.col)), (tracks, tracks))
    start = np.random.default_rng(config.seed).normal(size=tracks)
    left, sizes, _ = scipy.sparse.linalg.svds(matrix, k=config.factors, v0=start)
    factors: NDArray[np.float32] = (left * np.sqrt(sizes)).astype(np.float32)
    return factors
