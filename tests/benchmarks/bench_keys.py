"""How a run finds what is pending: seconds and memory of `songray transform` from 1 to 100 million tracks.

The library is simulated, but for its key indexes: data files and notes are empty, and have 256 rows according
to the indexes, so that a run that opened one of them would fail. First nothing is pending; then 100 tracks
are, in one real file. Real files are written for SONGRAY_BENCH_REAL (1,000,000) tracks: seconds and memory
until their key index is built, updated and read. Environment: SONGRAY_BENCH_KEYS, "1000000 10000000
100000000" (the largest takes 12 GB of disk and 1.2 million files); SONGRAY_BENCH_FIGURE, a file to which the
memory of what was measured is plotted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import tone
from matplotlib.figure import Figure
from tabulate import tabulate

from songray import key_index
from songray.cluster import ENVIRONMENT
from songray.key_index import FILES, KeyIndex
from songray.keys import track_key
from songray.library import Library
from songray.search.reference import Reference
from songray.search.version import TRACKS, ShardEntry, Version, publish
from songray.table import Table

SIZES = [int(size) for size in os.environ.get("SONGRAY_BENCH_KEYS", "1000000 10000000 100000000").split()]
REAL = int(os.environ.get("SONGRAY_BENCH_REAL", "1000000"))
FIGURE = os.environ.get("SONGRAY_BENCH_FIGURE", "")
FILE_ROWS = 256
NEW = 100
SHARD = 250_000  # tracks
MEASURED = """
import resource, sys
from songray.command import main
sys.argv[0] = "songray"
try:
    main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak {peak:.0f} MB", flush=True)
"""


Peaks = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def peaks() -> Iterator[Peaks]:
    """The largest memory by job and number of tracks, in megabytes."""
    measured: Peaks = {}
    yield measured
    if FIGURE:
        plot(measured)


def plot(measured: Peaks) -> None:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for job, values in measured.items():
        axes.plot(values.keys(), [peak / 1000 for peak in values.values()], marker="o", label=job)
    axes.set(
        xscale="log", xlabel="tracks in the library", ylabel="largest memory of the driver, GB", ylim=(0, 2)
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(FIGURE, dpi=150)


def run(library: Library) -> tuple[float, float, str]:
    """Seconds of `songray transform`, its peak memory in megabytes without Ray's other processes, and what it
    prints."""
    started = time.monotonic()
    command = [sys.executable, "-c", MEASURED, "transform", "--library", library.root]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    peak = re.search(r"peak (\d+) MB", done.stdout)
    assert peak is not None
    return time.monotonic() - started, float(peak[1]), done.stdout


def simulate(library: Library, tracks: int) -> None:
    """Previews and spectrograms of so many tracks, as empty files with full key indexes."""
    previews, spectrograms = library.table("previews"), library.table("spectrograms", "default")
    count = -(-tracks // FILE_ROWS)
    for folder in (previews.path, spectrograms.path, spectrograms.checkpoint_path):
        os.makedirs(folder)
        for number in range(count):
            open(f"{folder}/{number:07}_000000.parquet", "w").close()
    fill(previews._empty_index(previews.key_paths[0], previews.path, ("error",)), previews, tracks)
    committed = spectrograms._empty_index(spectrograms.key_paths[1], spectrograms.checkpoint_path, ())
    fill(committed, spectrograms, tracks)


def fill(index: KeyIndex, table: Table, tracks: int) -> None:
    """Store an index with random keys, equal for each table."""
    infos = key_index.list_infos(index.filesystem, index.folder)
    columns = [[i.base_name for i in infos], [i.size for i in infos], [i.mtime_ns for i in infos]]
    files = pa.table([*columns, np.arange(len(infos), dtype=np.int32)], schema=FILES)
    count = 1 << max(0, (tracks - 1) // key_index.RANGE_ROWS).bit_length()
    random, ranges = np.random.default_rng(0), []
    for low, high in key_index._intervals(count):
        numbers = np.unique(random.integers(low >> 8, high >> 8, tracks // count))
        rows = {
            "track_key": numbers << 8,
            "error": pa.nulls(numbers.size, pa.string()),
            "checksum": numbers & ~31,
            "file": random.integers(0, len(infos), numbers.size).astype(np.int32),
        }
        others = {name: index.schema.field(name).type for name in index.schema.names if name not in rows}
        rows |= {name: pa.repeat(pa.scalar(0).cast(kind), numbers.size) for name, kind in others.items()}
        part = pa.table({name: rows[name] for name in index.schema.names}, schema=index.schema)
        ranges.append(key_index._write(index, "range", part))
    key_index._publish(replace(index, files=files, numbers=len(infos), ranges=tuple(ranges)))


def add_previews(library: Library, folder: Path) -> None:
    sound = tone(folder / "tone.flac", seconds=1).read_bytes()
    table = library.table("previews")
    rows = [
        {"track_key": track_key(f"new:{number}", 0), "track_id": f"new:{number}", "audio": sound}
        for number in range(NEW)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), "new")


@pytest.mark.parametrize("tracks", SIZES)
def test_pending(tracks: int, tmp_path: Path, peaks: Peaks) -> None:
    library = Library.open(str(tmp_path / "library"))
    simulate(library, tracks)
    rows = []
    for situation, found in (("nothing", "0 finished now"), (f"{NEW} tracks", f"{NEW} finished now")):
        seconds, peak, printed = run(library)
        assert found in printed, printed
        rows.append([f"{tracks:,}", situation, seconds, peak])
        peaks.setdefault(f"transform, {situation} pending", {})[tracks] = peak
        add_previews(library, tmp_path)
    size = sum(path.stat().st_size for path in Path(library.root, "_keys").rglob("*.parquet")) / 1e6
    print(f"\nkey indexes of both tables: {size:.0f} MB\n")
    print(tabulate(rows, ["tracks", "pending", "s", "peak, MB"], tablefmt="github", floatfmt=".1f"))


def test_real_rows(cluster: None, tmp_path: Path) -> None:
    """Rows of `embeddings`, in files of FILE_ROWS rows."""
    table = Library.open(str(tmp_path / "library")).table("embeddings", "run")
    random = np.random.default_rng(0)
    keys = np.unique(random.integers(0, 1 << 55, REAL)) << 8
    for number, part in enumerate(np.array_split(keys, -(-len(keys) // FILE_ROWS))):
        table.append(pa.table({"track_key": part}), f"{number:07}")
    rows = []
    for step in ("built", "read again", "one more file"):
        if step == "one more file":
            table.append(pa.table({"track_key": pa.array([5 << 8])}), "new")
        started = time.monotonic()
        newest = table.newest(["track_key"])
        rows.append([step, newest.rows.num_rows, time.monotonic() - started])
    print(f"\n{tabulate(rows, ['step', 'rows', 's'], tablefmt='github', floatfmt='.2f')}")


# Anonymous memory: what is mapped, such as the object store, moves to disk where there is too much.
WATCH = """
import sys, threading, time
from songray.library import Library
peak = 0
def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            peak = max(peak, next(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
library = Library.open(sys.argv[1])
"""
PARTS = (
    WATCH
    + """
from songray.cluster import connect
from songray.search.target import TargetRanges, store_parts
connect()
started = time.monotonic()
ranges = TargetRanges.of(library, "run")
parts = store_parts(ranges, ranges.files, 250_000)
seconds = time.monotonic() - started
sizes = {len(part.load()) for part in parts[:3]}
print(len(parts), max(sizes), seconds, peak / 1024)
"""
)
JOINED = (
    WATCH
    + """
from songray.learning.members import Members
from songray.stages import find_pending
started = time.monotonic()
members = Members.of(library, ("run", "other"))
pending = find_pending(members.tables[0], library.table("embeddings", "joined"), members.common)
missing = sum(members.missing().values())
print(pending.rows, pending.keys.size, missing, time.monotonic() - started, peak / 1024)
"""
)
CHANGES = (
    WATCH
    + """
from songray.search.changes import compare
from songray.search.version import newest_version
version = newest_version(library, "run")
started = time.monotonic()
with compare(library, version) as changes:
    seconds = time.monotonic() - started
    print(changes.tracks, changes.missing, sum(map(len, changes.obsolete)), seconds, peak / 1024)
"""
)


@pytest.mark.parametrize("tracks", SIZES)
def test_parts_of_an_index(tracks: int, tmp_path: Path, peaks: Peaks) -> None:
    """What `songray index` does before it builds an index anew: which tracks each shard has."""
    library = simulate_embeddings(tmp_path, tracks, "run")
    command = [sys.executable, "-c", PARTS, library.root]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts, largest, seconds, peak = done.stdout.split()[-4:]
    assert int(largest) <= 250_000
    peaks.setdefault("index, built anew", {})[tracks] = float(peak)
    print(f"\n{tracks:,} tracks in {parts} parts: {float(seconds):.1f} s, peak {float(peak):.0f} MB")


def simulate_embeddings(folder: Path, tracks: int, *runs: str) -> Library:
    """Embeddings of runs, and `tracks`, of so many tracks, as empty files with full key indexes."""
    library = Library.open(str(folder / "library"))
    for table in (*(library.table("embeddings", run) for run in runs), library.table("tracks")):
        os.makedirs(table.path)
        for number in range(1000):
            open(f"{table.path}/{number:07}.parquet", "w").close()
        fill(table._empty_index(table.key_paths[0], table.path, table.kind.indexed), table, tracks)
    return library


@pytest.mark.parametrize("tracks", SIZES)
def test_joined_runs(tracks: int, tmp_path: Path, peaks: Peaks) -> None:
    """What `songray embed` compares for a run that joins two others, and has all of their tracks."""
    library = simulate_embeddings(tmp_path, tracks, "run", "other", "joined")
    joined = library.table("embeddings", "joined")
    committed = joined._empty_index(joined.key_paths[1], joined.checkpoint_path, ())
    os.makedirs(joined.checkpoint_path)
    for number in range(1000):
        open(f"{joined.checkpoint_path}/{number:07}_000000.parquet", "w").close()
    fill(committed, joined, tracks)
    done = subprocess.run([sys.executable, "-c", JOINED, library.root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, pending, missing, seconds, peak = done.stdout.split()
    assert (int(pending), int(missing)) == (0, 0)
    peaks.setdefault("embed, a joined run", {})[tracks] = float(peak)
    print(f"\n{int(count):,} tracks: {float(seconds):.1f} s, peak {float(peak):.0f} MB")


@pytest.mark.parametrize("tracks", SIZES)
def test_changes_of_an_index(tracks: int, tmp_path: Path, peaks: Peaks) -> None:
    """What `songray index` compares where NEW of the tracks are not indexed, and NEW others are."""
    library = simulate_embeddings(tmp_path, tracks, "run")
    index = library.table("embeddings", "run").key_index()
    entries, held = [], np.empty(0, np.int64)
    for interval in [*index.intervals, None]:
        keys = index.between(interval)["track_key"].to_numpy() if interval else held[:0]
        held = np.concatenate([held, keys])
        while len(held) >= SHARD or (interval is None and len(held)):
            entries.append(simulate_shard(library, len(entries), held[:SHARD]))
            held = held[SHARD:]
    version = Version("run", "000001", tracks, 2, {}, 0, 1.0, 1.0, entries, {})
    with library.lease("indexes/run") as lease:
        publish(library, version, Reference(np.arange(2), np.eye(2, dtype=np.float32)), lease)
    done = subprocess.run([sys.executable, "-c", CHANGES, library.root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, missing, obsolete, seconds, peak = done.stdout.split()
    assert (int(missing), int(obsolete)) == (NEW, NEW)
    peaks.setdefault(f"index, {NEW} tracks changed", {})[tracks] = float(peak)
    print(f"\n{int(count):,} tracks: {float(seconds):.1f} s, peak {float(peak):.0f} MB")


def simulate_shard(library: Library, number: int, keys: np.ndarray) -> ShardEntry:
    """A shard of which only the rows exist. In the first one, NEW tracks have changed since."""
    checksums = (keys >> 8) & ~31
    checksums[: NEW * (number == 0)] += 32
    folder = Path(library.path("indexes", "run", "shards", str(number)))
    folder.mkdir(parents=True)
    rows = pa.table({"track_key": keys, "checksum": checksums})
    with pa.OSFile(str(folder / TRACKS), "w") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    return ShardEntry(str(number), len(keys), "", 0, 1.0, {})
