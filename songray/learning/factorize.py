"""Reads playlists and tracks, writes factors: tracks that share playlists have similar vectors.

The model `factors` is trained to predict them from audio, for tracks that no playlist contains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from songray.cluster import connect
from songray.errors import InvalidOption, MissingInput
from songray.keys import sample_rank, track_number
from songray.leases import Lease
from songray.library import Library, Vectors
from songray.table import Table

if TYPE_CHECKING:
    import scipy.sparse

# Ray, scipy and implicit are imported in functions: jobs import this module for its options.

COLUMNS = ["playlist_id", "position", "crawl", "version", "track_id"]
CONTEXT = 2  # neighbours on each side of a track in a playlist that count as its context
CHECKSUM_ENTRIES = 100_000  # whose texts are in memory at a time
DRIVER_ENTRIES = 200_000  # up to so many, the driver itself checks for changes, in less time than Ray's start


@dataclass(frozen=True)
class FactorizeConfig:
    method: Literal["als", "item2vec"] = "als"
    """Method: als factorises which playlists contain a track (alternating least squares for implicit
    feedback, with BM25 weights); item2vec factorises which tracks are neighbours in playlists, as word2vec
    does implicitly."""
    factors: int = 64
    """Length of a vector."""
    iterations: int = 15
    """Number of iterations of alternating least squares."""
    min_playlists: int = 2
    """Tracks in fewer playlists than this are not used."""
    max_entries: int = 50_000_000
    """Largest number of playlist entries that are used, about 100 bytes of memory each; where the table has
    more rows, earlier versions of playlists included, a random sample of whole playlists is used."""
    seed: int = 0
    """Seed of the sample and of the initial factors."""


@dataclass(frozen=True)
class Factorized:
    table: str
    version: int
    tracks: int
    playlists: int
    is_new: bool

    def __str__(self) -> str:
        state = f"version {self.version} is new" if self.is_new else "unchanged since the last version"
        return f"factorize: {self.table}: {self.tracks} tracks in {self.playlists} playlists, {state}"


def factorize(library: Library, config: FactorizeConfig) -> Factorized:
    """Factorise all current playlists as a new version, unless they are unchanged since the last one.

    It runs as one task, whose memory grows with the entries that are used. Raises MissingInput where there is
    no playlist, InvalidOption where too few tracks are in --min-playlists playlists.
    """
    output = library.table("factors", config.method)
    with library.lease(output.name) as lease:
        output.clean()
        output.claim(asdict(config))
        if count_rows(library.table("playlists")) <= DRIVER_ENTRIES and (
            unchanged := find_unchanged(output, used_entries(library, config))
        ):
            return unchanged
        connect()
        import ray

        task = ray.remote(factorize_playlists).options(num_cpus=1)
        result: Factorized = ray.get(task.remote(library, output, config, lease))
    return result


def count_rows(table: Table) -> int:
    """The number of rows in all files, from their footers."""
    return sum(pa.parquet.read_metadata(path, filesystem=table.filesystem).num_rows for path in table.files())


def factorize_playlists(library: Library, output: Table, config: FactorizeConfig, lease: Lease) -> Factorized:
    entries = used_entries(library, config)
    if unchanged := find_unchanged(output, entries):
        return unchanged
    ids, factors = factorize_entries(entries, config)
    tracks = described_tracks(library.table("tracks"), ids.tolist())
    position = pa.compute.index_in(pa.array(ids), tracks["track_id"].combine_chunks())
    in_tracks = position.is_valid().to_numpy(zero_copy_only=False)
    previous = newest_version(output)
    version = previous["version"][0].as_py() + 1 if previous.num_rows else 1
    count = int(in_tracks.sum())
    rows = {
        "version": pa.repeat(pa.scalar(version, pa.int64()), count),
        "track_key": tracks["track_key"].take(position.drop_null()),
        "track_id": pa.array(ids[in_tracks]),
        "playlists": pa.repeat(pa.scalar(checksum(entries), pa.int64()), count),
        "factors": pa.FixedSizeListArray.from_arrays(pa.array(factors[in_tracks].ravel()), config.factors),
    }
    lease.check()
    output.append(pa.table(rows), f"{version:06d}")
    return Factorized(output.name, version, count, _count_playlists(entries), is_new=True)


def described_tracks(tracks: Table, track_ids: Sequence[str]) -> pa.Table:
    """`track_key` and `track_id` of those of some tracks that the table has; of two ids whose hashes are
    equal, which one of 100 million has with a probability of 3e-9, only the first. Memory: these rows, and a
    range of the key index."""
    numbers = np.unique(np.array([track_number(track_id) for track_id in track_ids], np.int64))
    return tracks.newest_rows(numbers, ["track_id"])


def used_entries(library: Library, config: FactorizeConfig) -> pa.Table:
    """The current entries of playlists, or a sample of them. Raises MissingInput where there are none."""
    entries = read_entries(library.table("playlists"), config)
    if not entries.num_rows:
        raise MissingInput("playlists is empty: run `songray crawl` on a source that has playlists first")
    return entries


def find_unchanged(output: Table, entries: pa.Table) -> Factorized | None:
    """The newest version, where it was computed from the same entries."""
    previous = newest_version(output)
    if not previous.num_rows or previous["playlists"][0].as_py() != checksum(entries):
        return None
    version = previous["version"][0].as_py()
    return Factorized(output.name, version, previous.num_rows, _count_playlists(entries), is_new=False)


def checksum(entries: pa.Table) -> int:
    """keys.hash64 of all entries, as texts of a playlist and a track."""
    separated = pa.compute.binary_join_element_wise
    digest, joint = hashlib.blake2b(digest_size=8), ""
    for batch in entries.select(["playlist_id", "track_id"]).to_batches(CHECKSUM_ENTRIES):
        texts = separated(batch["playlist_id"], batch["track_id"], " ").to_pylist()
        digest.update((joint + "\x00".join(texts)).encode())
        joint = "\x00"
    return int.from_bytes(digest.digest(), "little", signed=True)


def _count_playlists(entries: pa.Table) -> int:
    return int(pa.compute.count_distinct(entries["playlist_id"]).as_py())


def newest_version(factors: Table) -> pa.Table:
    """The rows of the newest version of factors."""
    rows = factors.read()
    return rows.filter(pa.compute.equal(rows["version"], pa.compute.max(rows["version"])))


def read_entries(playlists: Table, config: FactorizeConfig) -> pa.Table:
    """The current entries, or those of a random sample of playlists of at most about --max-entries entries.
    Memory: that of this sample, since it is taken as the table is read."""
    share = config.max_entries / max(1, count_rows(playlists))
    if share >= 1:
        return current_entries(playlists.read(COLUMNS))
    parts = [playlists.schema().empty_table().select(COLUMNS)]
    for batch in playlists.scan(COLUMNS, playlists.files()):
        rows = pa.Table.from_batches([batch.record_batch]).select(COLUMNS)
        names = rows["playlist_id"].unique().to_pylist()
        sampled = [name for name in names if sample_rank(str(config.seed), name) < share]
        parts.append(rows.filter(pa.compute.is_in(rows["playlist_id"], pa.array(sampled, pa.string()))))
    return current_entries(pa.concat_tables(parts, promote_options="permissive"))


def current_entries(rows: pa.Table) -> pa.Table:
    """The entries of the newest version of each playlist, in order. More than one crawl may have written a
    version, where the first was interrupted."""
    rows = rows.sort_by("crawl")
    newest = rows.group_by("playlist_id", use_threads=False).aggregate([("version", "last")])
    position = pa.compute.index_in(rows["playlist_id"], newest["playlist_id"].combine_chunks())
    kept = rows.filter(pa.compute.equal(rows["version"], newest["version_last"].take(position)))
    entries = kept.group_by(["playlist_id", "position"], use_threads=False).aggregate([("track_id", "last")])
    entries = entries.rename_columns(["playlist_id", "position", "track_id"])
    return entries.sort_by([("playlist_id", "ascending"), ("position", "ascending")])


def factorize_entries(entries: pa.Table, config: FactorizeConfig) -> tuple[NDArray[np.object_], Vectors]:
    """Entries in order, with `playlist_id` and `track_id` → ids of tracks, and factors, (tracks, factors).

    Raises InvalidOption where too few tracks are in --min-playlists playlists.
    """
    import scipy.sparse

    ids, track = numbered(entries["track_id"])
    _, playlist = numbered(entries["playlist_id"])
    contains = scipy.sparse.coo_array((np.ones(len(track), np.float32), (playlist, track))).tocsr()
    contains.data[:] = 1  # a playlist may repeat a track
    frequent = np.flatnonzero(contains.sum(axis=0) >= config.min_playlists)
    if frequent.size <= config.factors:
        raise InvalidOption(
            f"{frequent.size} tracks are in {config.min_playlists} playlists or more, too few for "
            f"{config.factors} factors: lower --factors or --min-playlists"
        )
    if config.method == "als":
        return ids[frequent], als(contains[:, frequent], config)
    number = np.full(len(ids), -1)
    number[frequent] = np.arange(frequent.size)
    return ids[frequent], item2vec(playlist, number[track], frequent.size, config)


def numbered(names: pa.ChunkedArray) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """The distinct names, sorted, and for each name its number among them. Memory: 12 bytes a name."""
    encoded = names.combine_chunks().dictionary_encode()
    order = pa.compute.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    distinct = encoded.dictionary.take(pa.array(order)).to_numpy(zero_copy_only=False)
    return distinct, rank[encoded.indices.to_numpy()]


def als(contains: scipy.sparse.csr_array, config: FactorizeConfig) -> Vectors:
    """Factors of the columns of a matrix of playlists × tracks, by alternating least squares (Hu, Koren and
    Volinsky, 2008) on BM25 weights, with the constants of Clothier and Benson (2021)."""
    import implicit.als
    import implicit.nearest_neighbours
    import scipy.sparse
    from threadpoolctl import threadpool_limits

    weights = implicit.nearest_neighbours.bm25_weight(scipy.sparse.csr_matrix(contains), K1=100, B=0.8)
    with threadpool_limits(1, "blas"):  # whose threads wait for each other in implicit's loops
        model = implicit.als.AlternatingLeastSquares(
            factors=config.factors, iterations=config.iterations, random_state=config.seed, num_threads=1
        )
        model.fit(weights.tocsr(), show_progress=False)
    factors: Vectors = model.item_factors
    return factors


def item2vec(
    playlist: NDArray[np.int64], track: NDArray[np.int64], tracks: int, config: FactorizeConfig
) -> Vectors:
    """Factors of tracks from their neighbours in playlists; entries in order, with −1 for tracks not used.

    word2vec with negative sampling implicitly factorises the matrix of pointwise mutual information (Levy and
    Goldberg, 2014). This factorises its positive part by a truncated singular value decomposition, and gives
    the square root of the singular values to each side.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    pairs = []
    for distance in range(1, CONTEXT + 1):
        left, right = track[:-distance], track[distance:]
        same_playlist = playlist[:-distance] == playlist[distance:]
        used = same_playlist & (left >= 0) & (right >= 0) & (left != right)
        pairs += [(left[used], right[used]), (right[used], left[used])]
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    counts = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), (tracks, tracks)).tocsr().tocoo()
    marginal = counts.sum(axis=0)
    expected = marginal[counts.row] * marginal[counts.col] / counts.sum()
    information = np.maximum(np.log(counts.data / expected), 0)
    matrix = scipy.sparse.csr_array((information, (counts.row, counts.col)), (tracks, tracks))
    start = np.random.default_rng(config.seed).normal(size=tracks)
    vectors, values, _ = scipy.sparse.linalg.svds(matrix, k=config.factors, v0=start)
    factors: Vectors = (vectors * np.sqrt(values)).astype(np.float32)
    return factors
