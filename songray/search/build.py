"""Reads embeddings and tracks, writes an index: a version of shards, each of which a Ray task of its own
builds, appends to and checks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.fs
import pyarrow.ipc
import ray
from numpy.typing import NDArray

from songray.learning import runs
from songray.library import REVISION_BITS, Keys, Library, Table, Vectors, last_of_equal, matrix
from songray.search import shard as shards
from songray.search.hnsw import EFS, K, tune
from songray.search.shard import SHOWN, Reference
from songray.search.version import (
    LIVE,
    Manifest,
    ShardEntry,
    checksum,
    following,
    live_tracks,
    local,
    newest_manifest,
    prune,
    publish,
    read_reference,
    without,
)

SAMPLE = 20_000  # tracks of the lowest lot, on which links are tuned
REFERENCE = 1024  # the first of them; four times as many made the build slower by a tenth
TELLING = 1000  # tracks that are added to a shard: by fewer, its recall is not measured again
ROW_BYTES = 600  # of a track's rows and names, about


@dataclass(frozen=True)
class IndexConfig:
    run: str = ""
    """Run whose embeddings are indexed; may be left out where there is only one."""
    recall: float = 0.99
    """Share of the true 10 nearest neighbours that a search shall find."""
    links: int | None = None
    """Links a vector (hnswlib's M): more find better and take more memory; by default, the least that reach
    the recall on a sample."""
    ef_construction: int = 200
    """Candidates that are compared while a vector is linked: more find better and build slower."""
    shard_tracks: int = 250_000
    """The most tracks in one shard."""
    shard_mb: int = 1024
    """The most memory that one shard takes where it is served."""
    threads: int = 2
    """Threads, and Ray's CPUs, that build one shard."""
    compact: bool = False
    """Build all anew, without what was deleted."""
    keep: int = 2
    """Newest versions that are kept."""

    def __post_init__(self) -> None:
        least = {"links": 2, "ef_construction": 1, "shard_tracks": 1, "shard_mb": 1, "threads": 1, "keep": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}: must be at least {bound}")
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall is {self.recall}: must be above 0, and at most 1")

    def room(self, dimension: int, links: int) -> int:
        """Tracks that a shard may hold."""
        track_bytes = 6 * dimension + 10 * links + ROW_BYTES  # in float32 and float16
        return max(1, min(self.shard_tracks, self.shard_mb * 1_000_000 // track_bytes))


@dataclass(frozen=True)
class IndexSummary:
    manifest: Manifest
    new: bool  # or kept, as nothing has changed
    added: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        one = self.manifest
        verb = "wrote" if self.new else "nothing has changed: kept"
        changes = f": {self.added} added, {self.deleted} taken out" if self.new else ""
        return (
            f"index {one.run}: {verb} version {one.version}, {one.tracks} tracks in {len(one.shards)} "
            f"shards{changes}; recall@{K} {one.recall:.4f} at ef {one.ef}, M {one.parameters['M']}"
        )


def index(library: Library, config: IndexConfig) -> IndexSummary:
    """Bring the index of a run up to its embeddings and tracks, as a new version: new tracks are appended,
    those that are gone are marked deleted. Other parameters than before, or `compact`, build all anew."""
    run = runs.choose(library, config.run).name
    prune(library, run, config.keep)
    before = newest_manifest(library, run)
    wanted = wanted_tracks(library, run)
    if not len(wanted):
        raise ValueError(f"embeddings/{run} is empty: run jobs/embed.py first")
    if before is None or config.compact or not same(before, config):
        summary = build_anew(library, run, config, wanted, before)
    else:
        summary = bring_up(library, config, wanted, before)
    prune(library, run, config.keep)
    return summary


def same(before: Manifest, config: IndexConfig) -> bool:
    """Whether a version was made with these parameters."""
    links = config.links or before.parameters["M"]
    asked = ({"M": links, "ef_construction": config.ef_construction}, config.recall)
    return (before.parameters, before.recall_target) == asked


WANTED = np.dtype(
    [
        ("key", "i8"),  # of the embedding
        ("file", "i4"),  # that holds it
        ("track_key", "i8"),
        ("track_file", "i4"),
        ("checksum", "i8"),
    ]
)


def wanted_tracks(library: Library, run: str) -> NDArray[np.void]:
    """The newest revisions of the tracks that have a row and a vector, of WANTED, by key. Memory: 32 bytes a
    track."""
    embedded = _located(library.table("embeddings", run), ["track_key"])
    known = _located(library.table("tracks"), ["track_key", "crawl", "checksum"])
    _, of_embedded, of_known = np.intersect1d(
        embedded["track_key"] >> REVISION_BITS,
        known["track_key"] >> REVISION_BITS,
        assume_unique=True,
        return_indices=True,
    )
    wanted = np.empty(len(of_embedded), WANTED)
    wanted["key"], wanted["file"] = embedded["track_key"][of_embedded], embedded["file"][of_embedded]
    for name, column in (("track_key", "track_key"), ("track_file", "file"), ("checksum", "checksum")):
        wanted[name] = known[column][of_known]
    return wanted


def _located(table: Table, columns: list[str]) -> dict[str, Keys]:
    """Columns of the newest row of each track, and the number of the file that it lies in."""
    files = table.files()
    number = {path: position for position, path in enumerate(files)}
    parts: dict[str, list[Keys]] = {name: [np.empty(0, np.int64)] for name in [*columns, "file"]}
    for batch in table.scan(columns, files):
        for name in columns:
            column = pa.compute.fill_null(batch.record_batch[name], 0)
            parts[name].append(column.to_numpy())
        parts["file"].append(np.full(batch.record_batch.num_rows, number[batch.fragment.path]))
    whole = {name: np.concatenate(several) for name, several in parts.items()}
    order = np.lexsort([whole[name] for name in ("crawl", "track_key") if name in whole])
    newest = order[last_of_equal(whole["track_key"][order] >> REVISION_BITS)]
    return {name: column[newest] for name, column in whole.items()}


def build_anew(
    library: Library, run: str, config: IndexConfig, wanted: NDArray[np.void], before: Manifest | None
) -> IndexSummary:
    """A version that shares nothing with those before it."""
    prepared = ray.remote(prepare).options(num_cpus=config.threads).remote(library, run, config, wanted)
    reference, parameters = ray.get(prepared)
    dimension = reference.vectors.shape[1]
    manifest = Manifest(
        run=run,
        version=following(before),
        tracks=0,
        dimension=dimension,
        parameters=parameters,
        ef=EFS[0],
        recall=1.0,
        recall_target=config.recall,
        shards=[],
        made_with=runs.made_with(),
    )
    room = config.room(dimension, parameters["M"])
    parts = [(None, part) for part in portions(wanted, room)]
    built = build(library, manifest, config, reference, parts)
    finished = publish(library, replace(manifest, shards=built), reference)
    return IndexSummary(finished, new=True, added=len(wanted), deleted=0)


def portions(wanted: NDArray[np.void], room: int) -> list[NDArray[np.void]]:
    """In as few and as equal parts as fit; in the order of files, so that a part needs few of them."""
    if not len(wanted):
        return []
    by_file = wanted[np.argsort(wanted["file"], kind="stable")]
    return np.array_split(by_file, -(-len(wanted) // room))


def prepare(
    library: Library, run: str, config: IndexConfig, wanted: NDArray[np.void]
) -> tuple[Reference, dict[str, int]]:
    """What a new index needs to know of all tracks: the reference, and the number of links that reach the
    recall on a sample, where none is given."""
    drawn = np.sort(wanted["key"])[: SAMPLE if config.links is None else REFERENCE]  # a key is a hash
    vectors = read_vectors(library, run, wanted[np.isin(wanted["key"], drawn)])
    reference = Reference(drawn[:REFERENCE] >> REVISION_BITS, vectors[:REFERENCE])
    links = config.links or tune(vectors, config.ef_construction, config.recall)
    return reference, {"M": links, "ef_construction": config.ef_construction}


def read_vectors(library: Library, run: str, wanted: NDArray[np.void]) -> Vectors:
    """(tracks, dimension), in the order of keys; opens only the files that hold them."""
    table = library.table("embeddings", run)
    keys, listed = np.sort(wanted["key"]), table.files()
    files = [listed[number] for number in np.unique(wanted["file"])]
    isin = pa.compute.field("track_key").isin(pa.array(keys))
    rows = table.read(["track_key", "embedding"], where=isin, files=files).sort_by("track_key")
    if not np.array_equal(rows["track_key"].to_numpy(), keys):
        raise ValueError(f"embeddings/{run} has changed meanwhile: run jobs/index.py again")
    return matrix(rows["embedding"])


def read_tracks(library: Library, wanted: NDArray[np.void]) -> pa.Table:
    """Rows of the tracks, by the order of their embeddings' keys, which are their `track_key` here."""
    table = library.table("tracks")
    keys, listed = np.sort(wanted["track_key"]), table.files()
    files = [listed[number] for number in np.unique(wanted["track_file"])]
    isin = pa.compute.field("track_key").isin(pa.array(keys))
    rows = table.read(["track_key", "crawl", "checksum", *SHOWN], where=isin, files=files)
    rows = rows.sort_by([("track_key", "ascending"), ("crawl", "ascending")])
    newest = rows.filter(pa.array(last_of_equal(rows["track_key"].to_numpy())))
    if not np.array_equal(newest["track_key"].to_numpy(), keys):
        raise ValueError("tracks has changed meanwhile: run jobs/index.py again")
    by_key = np.sort(wanted, order="key")
    checksum = pa.compute.fill_null(newest["checksum"], 0)
    named = newest.drop(["crawl"]).set_column(0, "track_key", pa.array(by_key["key"]))
    return named.set_column(named.schema.get_field_index("checksum"), "checksum", checksum)


def build(
    library: Library,
    manifest: Manifest,
    config: IndexConfig,
    reference: Reference,
    parts: Sequence[tuple[ShardEntry | None, NDArray[np.void]]],
) -> list[ShardEntry]:
    """Shards of these tracks, each, where a shard is given, after those of that one."""
    task = ray.remote(build_shard).options(num_cpus=config.threads)
    shared = ray.put(reference)
    entries: list[ShardEntry] = ray.get(
        [
            task.remote(library, manifest, config.threads, shared, f"{manifest.version}-{number:04d}", *part)
            for number, part in enumerate(parts)
        ]
    )
    return entries


def build_shard(
    library: Library,
    manifest: Manifest,
    threads: int,
    reference: Reference,
    name: str,
    before: ShardEntry | None,
    wanted: NDArray[np.void],
) -> ShardEntry:
    """Worker: build a shard of these tracks, with its recall, and put its files into the library. Memory: the
    shard's, and its vectors once more."""
    vectors = read_vectors(library, manifest.run, wanted)
    tracks = read_tracks(library, wanted)
    with tempfile.TemporaryDirectory(prefix="songray-shard-") as temporary:
        folder = Path(temporary)
        with local(library, manifest.run, before) if before else nullcontext() as old:
            asked = (manifest.parameters, manifest.recall_target)
            ef, recall = shards.write(folder, vectors, tracks, reference, *asked, old, threads)
        if before and len(wanted) < TELLING:
            ef, recall = before.ef, before.recall
        elif before:
            ef = max(ef, before.ef)
        target = library.path("indexes", manifest.run, "shards", name)
        library.filesystem.create_dir(target, recursive=True)
        pa.fs.copy_files(temporary, target, pa.fs.LocalFileSystem(), library.filesystem)
        checksums = {file: checksum(folder / file) for file in shards.FILES}
    deleted = before.deleted if before else []
    return ShardEntry(name, len(wanted) + (before.tracks if before else 0), deleted, ef, recall, checksums)


def bring_up(
    library: Library, config: IndexConfig, wanted: NDArray[np.void], before: Manifest
) -> IndexSummary:
    """A version that lacks nothing and has nothing that is gone: the one before, if it is so already."""
    known = [live_tracks(library, before.run, entry) for entry in before.shards]
    every = np.concatenate(known) if known else np.empty(0, LIVE)
    lacking = wanted[~_among(wanted, every)]
    gone = [part["label"][~_among(part, wanted)] for part in known]
    deleted = sum(map(len, gone))
    if not len(lacking) and not deleted:
        return IndexSummary(before, new=False)
    entries = without(before.shards, gone)
    manifest = replace(before, version=following(before), made_with=runs.made_with())
    reference = read_reference(library, before)
    room = config.room(before.dimension, before.parameters["M"])
    last = entries[-1] if entries and entries[-1].tracks < room else None
    here = room - last.tracks if last else 0
    parts: list[tuple[ShardEntry | None, NDArray[np.void]]] = []
    if last and len(lacking):
        parts.append((last, lacking[:here]))
        entries = entries[:-1]
    parts.extend((None, part) for part in portions(lacking[here:], room))
    built = build(library, manifest, config, reference, parts)
    finished = publish(library, replace(manifest, shards=[*entries, *built]), reference)
    return IndexSummary(finished, new=True, added=len(lacking), deleted=deleted)


def _among(some: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether each has its key and checksum among others, whose keys are unique."""
    if not len(others):
        return np.zeros(len(some), bool)
    order = np.argsort(others["key"])
    position = np.minimum(np.searchsorted(others["key"], some["key"], sorter=order), len(others) - 1)
    same = others[order[position]]
    alike: NDArray[np.bool_] = (same["key"] == some["key"]) & (same["checksum"] == some["checksum"])
    return alike
