"""Reads embeddings and tracks, writes a version of an index: Ray tasks build its shards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from songray.cluster import connect
from songray.errors import InvalidOption, MissingInput
from songray.keys import REVISION_BITS
from songray.learning import runs
from songray.leases import Lease
from songray.library import Library
from songray.search.changes import Changes, compare
from songray.search.filters import CACHED_FILTERS
from songray.search.reference import Reference
from songray.search.stored_maps import newest_map, read_map_reference
from songray.search.tags import statistics
from songray.search.target import (
    StoredTarget,
    Target,
    TargetRanges,
    have_direction,
    lowest_tracks,
    read_tagged_vectors,
    read_tracks,
    store_parts,
)
from songray.search.version import (
    Bits,
    ShardEntry,
    Version,
    local_copy,
    mark_deleted,
    merge_hosts,
    newest_version,
    next_version,
    prune,
    publish,
    read_reference,
    shard_name,
    store_shard,
)

# Ray, and the modules that load hnswlib, are imported in functions: `--help` needs neither.

TUNING_TRACKS = 20_000  # of the lowest keys, on which M is tuned
REFERENCE_TRACKS = 1024  # the first of these; four times as many took a tenth longer to build
MEASURED_TRACKS = 1000  # that are appended to a shard: for fewer, its recall is not measured again
ROW_BYTES = 600  # of a track's row and text, about


@dataclass(frozen=True)
class IndexConfig:
    run: str = ""
    """Run whose embeddings are indexed; may be omitted where the library has only one."""
    recall: float = 0.99
    """Share of the true 10 nearest neighbours that a search returns, on average."""
    bits: Bits | None = None
    """Bits a number in the graph's vectors: 32 (hnswlib), or 8 (faiss, mapped from its file), whose search
    ranks candidates again by the vectors in half precision. The default is as before, at first 32."""
    links: int | None = None
    """Links per vector (HNSW's M): more raise the recall and take more memory. The default is the smallest
    number that reaches the recall on a sample."""
    ef_construction: int = 200
    """Candidates that are compared when a vector is added: more raise the recall and slow down the build."""
    shard_tracks: int = 250_000
    """Maximum number of tracks in a shard."""
    shard_mb: int = 1024
    """Maximum memory of a shard when it is served, in megabytes."""
    threads: int = 2
    """Threads, and Ray CPUs, that build a shard."""
    compact: bool = False
    """Build the index anew, without the tracks that were deleted."""
    keep: int = 2
    """Number of newest versions that are kept."""

    def __post_init__(self) -> None:
        least = {"links": 2, "ef_construction": 1, "shard_tracks": 1, "shard_mb": 1, "threads": 1, "keep": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InvalidOption(f"{name} is {value}: must be at least {bound}")
        if not 0 < self.recall <= 1:
            raise InvalidOption(f"recall is {self.recall}: must be above 0, and at most 1")

    def shard_capacity(self, dimension: int, m: int) -> int:
        """Maximum number of tracks in a shard by both limits."""
        track_bytes = (3 if self.bits == 8 else 6) * dimension + 10 * m + ROW_BYTES  # and in float16
        track_bytes += CACHED_FILTERS // 8
        return max(1, min(self.shard_tracks, self.shard_mb * 1_000_000 // track_bytes))


@dataclass(frozen=True)
class IndexSummary:
    version: Version
    new: bool  # False where nothing had changed
    added: int = 0
    deleted: int = 0
    left_out: int = 0  # tracks whose vectors are not finite or 0, which no search can compare

    def __str__(self) -> str:
        version = self.version
        verb = "wrote" if self.new else "nothing has changed: kept"
        changes = f": {self.added} added, {self.deleted} deleted" if self.new else ""
        left_out = f"; {self.left_out} left out, whose vectors are not finite or 0" if self.left_out else ""
        return (
            f"index {version.run}: {verb} version {version.version}, {version.tracks} tracks in "
            f"{len(version.shards)} shards{changes}; recall@10 {version.recall:.4f} at ef {version.ef}, "
            f"M {version.parameters['M']}{', 8 bits a number' if version.bits == 8 else ''}{left_out}"
        )


def index(library: Library, config: IndexConfig) -> IndexSummary:
    """Write a version of a run's index that contains its embeddings, unless the newest version does.

    New tracks are appended to the last shard, and tracks that are no more are marked as deleted. The index is
    built anew with `compact`, and where the options differ from those of the newest version.
    """
    run = runs.choose(library, config.run).name
    with library.lease(f"indexes/{run}") as lease:
        prune(library, run, config.keep, lease)
        before = newest_version(library, run)
        config = replace(config, bits=config.bits or (before.bits if before else 32))
        is_kept = before is not None and has_options(library, before, config) and not config.compact
        if before is None or not before.shards or not is_kept:
            summary = build(library, run, config, before, lease)
        else:
            summary = update(library, config, before, lease)
        prune(library, run, config.keep, lease)
    return summary


def has_options(library: Library, version: Version, config: IndexConfig) -> bool:
    """Whether a version was built with these options, and with the map of its run, where that has one."""
    m = config.links or version.parameters["M"]
    parameters = {"M": m, "ef_construction": config.ef_construction}
    fitted = newest_map(library, version.run)
    options = (parameters, config.recall, config.bits, fitted.id if fitted else version.map)
    return (version.parameters, version.recall_target, version.bits, version.map) == options


def build(
    library: Library, run: str, config: IndexConfig, before: Version | None, lease: Lease
) -> IndexSummary:
    """Write a version that shares no shard with those before it."""
    # Keys are sorted hashes: the first ones are a random sample.
    sample = lowest_tracks(library, run, TUNING_TRACKS if config.links is None else REFERENCE_TRACKS)
    if not len(sample):
        raise MissingInput(f"embeddings/{run} is empty: run `songray embed` first")
    connect()
    import ray

    prepared = ray.remote(prepare).options(num_cpus=config.threads).remote(library, run, config, sample)
    reference, parameters, tags = ray.get(prepared)
    dimension = reference.vectors.shape[1]
    version = Version(
        run=run,
        version=next_version(before),
        tracks=0,
        dimension=dimension,
        parameters=parameters,
        ef=0,
        recall=0.0,
        recall_target=config.recall,
        shards=[],
        made_with=runs.software_versions(),
        tags=tags,
        bits=config.bits or 32,
    )
    ranges = TargetRanges.of(library, run)
    stored = store_parts(ranges, ranges.files, config.shard_capacity(dimension, parameters["M"]))
    parts: list[Part] = [(None, part) for part in stored]
    if (fitted := newest_map(library, run)) is not None:
        version = replace(version, map=fitted.id, map_facts=fitted.facts)
        reference = read_map_reference(fitted.table)
    built, left_out = build_shards(library, version, config.threads, reference, parts)
    finished = publish(library, replace(version, shards=built), reference, lease)
    return IndexSummary(finished, new=True, added=finished.tracks, left_out=left_out)


def prepare(
    library: Library, run: str, config: IndexConfig, sample: Target
) -> tuple[Reference, dict[str, int], dict[str, list[float]]]:
    """Worker: the reference of a new index, HNSW's parameters, and the statistics of the run's tags. M is
    tuned on the sample where it is not given."""
    from songray.search.hnsw import tune_m

    labels = runs.tags_of(library, runs.choose(library, run))
    vectors, levels = read_tagged_vectors(library, run, sample, len(labels))
    is_usable = have_direction(vectors)
    if not is_usable.any():
        raise MissingInput(f"embeddings/{run}: none of {len(sample)} vectors is finite: train another run")
    vectors, levels = vectors[is_usable], levels[is_usable]
    tracks = sample.rows["key"][is_usable][:REFERENCE_TRACKS] >> REVISION_BITS
    m = config.links or tune_m(vectors, config.ef_construction, config.recall, config.bits == 8)
    parameters = {"M": m, "ef_construction": config.ef_construction}
    return Reference(tracks, vectors[:REFERENCE_TRACKS]), parameters, statistics(labels, levels)


def update(library: Library, config: IndexConfig, before: Version, lease: Lease) -> IndexSummary:
    """Write a version with the shards of the one before, missing tracks appended, others marked as deleted;
    return the one before where nothing has changed. Memory: see changes.compare."""
    version = replace(before, version=next_version(before), made_with=runs.software_versions())
    with compare(library, before) as changes:
        if not changes.tracks:
            raise MissingInput(f"embeddings/{before.run} is empty: run `songray embed` first")
        deleted = sum(map(len, changes.obsolete))
        if not changes.missing and not deleted:
            return IndexSummary(before, new=False)
        entries = mark_deleted(before.shards, changes.obsolete)
        capacity = config.shard_capacity(before.dimension, before.parameters["M"])
        kept, parts = assign(entries, changes, capacity)
    reference = read_reference(library, before)
    built, left_out = build_shards(library, version, config.threads, reference, parts)
    added = changes.missing - left_out
    if not added and not deleted:
        return IndexSummary(before, new=False, left_out=left_out)
    finished = publish(library, replace(version, shards=[*kept, *built]), reference, lease)
    return IndexSummary(finished, new=True, added=added, deleted=deleted, left_out=left_out)


Part = tuple[ShardEntry | None, StoredTarget]  # a shard to which tracks are appended, if any, and these


def assign(entries: list[ShardEntry], changes: Changes, capacity: int) -> tuple[list[ShardEntry], list[Part]]:
    """The entries that stay, and the parts to build: the last shard is filled up, then new ones follow."""
    if not changes.missing:
        return entries, []
    connect()
    last = entries[-1] if entries and entries[-1].tracks < capacity else None
    room = capacity - last.tracks if last else 0
    first, *others = store_parts(changes.missing_tracks, changes.files, capacity, room)
    kept = entries[:-1] if last else entries
    return kept, [(last, first), *((None, part) for part in others)]


def build_shards(
    library: Library, version: Version, threads: int, reference: Reference, parts: Sequence[Part]
) -> tuple[list[ShardEntry], int]:
    """Build a shard of each part, in parallel. Returns those with tracks, and how many tracks no search can
    compare."""
    if not parts:
        return [], 0
    connect()
    import ray

    task = ray.remote(build_shard).options(num_cpus=threads)
    shared = ray.put(reference)
    built: list[tuple[ShardEntry, int]] = ray.get(
        [
            task.remote(library, version, threads, shared, shard_name(version, number), *part)
            for number, part in enumerate(parts)
        ]
    )
    return [entry for entry, _ in built if entry.tracks], sum(left_out for _, left_out in built)


def build_shard(
    library: Library,
    version: Version,
    threads: int,
    reference: Reference,
    name: str,
    before: ShardEntry | None,
    stored: StoredTarget,
) -> tuple[ShardEntry, int]:
    """Worker: build a shard, and copy its files into the library; how many tracks no search can compare.
    Memory: that of the shard, and its vectors once more."""
    from songray.search.hnsw import GraphOptions
    from songray.search.rows import SHOWN, TAGS, audio_hosts
    from songray.search.shard_files import level_column, write_shard

    every = stored.load()
    vectors, levels = read_tagged_vectors(library, version.run, every, len(version.tags))
    is_usable = have_direction(vectors)
    target, vectors, levels = every.select(is_usable), vectors[is_usable], levels[is_usable]
    if not len(target):
        return before or ShardEntry(name, 0, "", 0, 1.0, {}), len(every)
    tracks = read_tracks(library, target, SHOWN)
    if version.tags:
        tracks = tracks.append_column(TAGS, level_column(levels))
    options = GraphOptions(version.parameters, version.recall_target, threads, version.bits == 8)
    with tempfile.TemporaryDirectory(prefix="songray-shard-") as temporary:
        folder = Path(temporary)
        with local_copy(library, version.run, before) if before else nullcontext() as old:
            ef, recall = write_shard(folder, vectors, tracks, reference, options, old)
        if before and len(target) < MEASURED_TRACKS:
            ef, recall = before.ef, before.recall
        elif before:
            ef = max(ef, before.ef)
        checksums = store_shard(library, version.run, name, folder)
    deleted, count, known = (before.deleted, before.tracks, before.hosts) if before else ("", 0, [])
    hosts = merge_hosts([audio_hosts(tracks), known])
    entry = ShardEntry(name, len(target) + count, deleted, ef, recall, checksums, hosts)
    return entry, len(every) - len(target)
