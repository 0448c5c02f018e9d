"""The download stage: beside a bare aiohttp loop, its memory, a mix of faults, and kills.

make bench, or: python -m pytest -q -s --timeout=0 tests/benchmarks/bench_previews.py
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import free_port
from ray.cluster_utils import Cluster
from tabulate import tabulate

from songray.audio.download import SCHEMA, DownloadConfig, is_audio
from songray.library import TABLES, Library, track_key

ROOT = Path(__file__).resolve().parents[2]
FILES, SIZE, LATENCY_SECONDS = int(os.environ.get("FILES", 5000)), 400_000, 0.05
CONFIG = DownloadConfig()
UNLIMITED = ("--host-requests-per-second", "100000")


@contextmanager
def host(size: int = SIZE, latency_seconds: float = LATENCY_SECONDS) -> Iterator[str]:
    """A host of previews in a process of its own."""
    port = free_port()
    arguments = ["--port", str(port), "--latency", str(latency_seconds), "--size", str(size)]
    process = subprocess.Popen([sys.executable, "-m", "fakes.previews", *arguments], cwd=ROOT / "tests")
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                answered(url)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def answered(url: str) -> list[tuple[str, float]]:
    """Path and time of each answer since the last call of this."""
    with urllib.request.urlopen(f"{url}/_answered") as response:
        return [tuple(pair) for pair in json.load(response)]


def catalogue(library: Library, locations: list[str]) -> None:
    rows = [
        {"track_key": track_key(str(number), 0), "track_id": str(number), "revision": 0, "crawl": 1,
         "location": location, "source": "manifest"}
        for number, location in enumerate(locations)
    ]  # fmt: skip
    library.table("tracks").append(pa.Table.from_pylist(rows, pa.schema(TABLES["tracks"].columns)), "000001")


def job(library: Library, *options: str, address: str = "") -> subprocess.Popen[str]:
    arguments = [sys.executable, "jobs/download.py", "--library", library.root, *options]
    environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return output


async def bare_loop(url: str, folder: Path) -> None:
    """As plain as can be: as many requests in flight, the same checks, the same files."""
    library = Library.open(str(folder))
    numbers = iter(range(FILES))
    rows: list[dict[str, object]] = []

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            async with session.get(f"{url}/good/{number}") as response:
                body = await response.read()
            assert is_audio(body)
            row = {"track_key": number, "track_id": str(number), "audio": body, "size_bytes": len(body)}
            rows.append(row | {"sha256": hashlib.sha256(body).digest(), "status": response.status})
            if len(rows) == CONFIG.rows_per_file:
                write(rows)

    def write(some: list[dict[str, object]]) -> None:
        table = pa.Table.from_pylist(some, SCHEMA)
        path = library.path(f"{some[0]['track_key']}.parquet")
        pa.parquet.write_table(table, path, 16, compression="none")
        some.clear()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        in_flight = CONFIG.workers * CONFIG.downloads_per_worker
        await asyncio.gather(*(worker(session) for _ in range(in_flight)))
    if rows:
        write(rows)


def rates(url: str) -> tuple[float, float]:
    """Files a second between the tenth and the ninetieth percentile, and over the whole."""
    times = np.sort([at for _, at in answered(url)])
    first, last = int(times.size * 0.1), int(times.size * 0.9)
    return (last - first) / (times[last] - times[first]), times.size / (times[-1] - times[0])


def test_beside_a_bare_loop(tmp_path: Path) -> None:
    rows = []
    with host() as url:
        for turn in range(2):
            asyncio.run(bare_loop(url, tmp_path / f"bare{turn}"))
            bare, bare_whole = rates(url)
            library = Library.open(str(tmp_path / f"library{turn}"))
            catalogue(library, [f"{url}/good/{number}" for number in range(FILES)])
            finish(job(library, *UNLIMITED))
            stage, stage_whole = rates(url)
            assert library.table("previews").finished_keys().size == FILES
            megabytes = SIZE / 1e6
            rows.append([turn, bare, bare * megabytes, stage, stage * megabytes, stage / bare,
                         stage_whole / bare_whole])  # fmt: skip
    in_flight = f"{CONFIG.workers} × {CONFIG.downloads_per_worker} in flight"
    print(f"\n{FILES} previews of {SIZE / 1e3:.0f} kB, {LATENCY_SECONDS * 1e3:.0f} ms latency, {in_flight}; ")
    print("rates between the 10th and the 90th percentile of the answers\n")
    heads = ["turn", "bare files/s", "MB/s", "stage files/s", "MB/s", "ratio", "ratio of the whole"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".2f"))


def memory_of_tree(process: int) -> int:
    """Bytes of a process and all below it, what they share counted once."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            parents[int(status.parent.name)] = int(fields[1])
        except OSError:
            continue
    tree = {process}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    total = 0
    for member in tree:
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    return total


def test_memory(tmp_path: Path) -> None:
    rows = []
    with host(size=2000, latency_seconds=0.0) as url:
        for count in (1000, 5000, 20_000):
            library = Library.open(str(tmp_path / str(count)))
            catalogue(library, [f"{url}/good/{number}" for number in range(count)])
            process = job(library, *UNLIMITED)
            peaks = []

            def watch(process: subprocess.Popen[str] = process, peaks: list[int] = peaks) -> None:
                while process.poll() is None:
                    peaks.append(memory_of_tree(process.pid))
                    time.sleep(0.5)

            watcher = threading.Thread(target=watch)
            watcher.start()
            output = finish(process)
            watcher.join()
            rows.append([count, max(peaks) / 2**20, output.split(" (")[-1].split(")")[0]])
    print("\nPeak memory of the job with its own Ray, bodies of 2 kB\n")
    print(tabulate(rows, ["tracks", "MiB", "took"], tablefmt="github", floatfmt=".0f"))


FAULTS = {"missing": "http_404", "expired": "http_403", "empty": "empty", "html": "not_audio",
          "loop": "redirects", "huge": "too_large", "broken": "again", "reset": "again", "truncated": "again",
          "wronglength": "again", "drip": "again", "silent": "again", "busy": "good", "flaky": "good",
          "resetonce": "good"}  # fmt: skip


def test_faults(tmp_path: Path) -> None:
    total_seconds, count = 20, 2000
    faults = list(FAULTS)
    kinds = [faults[n // 10 % len(faults)] if n % 10 == 0 else "good" for n in range(count)]
    library = Library.open(str(tmp_path))
    with host(latency_seconds=0.02, size=50_000) as url:
        catalogue(library, [f"{url}/{kind}/{number}" for number, kind in enumerate(kinds)])
        limits = ("--total-seconds", str(total_seconds), "--max-bytes", "10000000")
        process = job(library, *UNLIMITED, *limits)
        table = library.table("previews")
        output = finish(process)
        answers = answered(url)
    ended = max(Path(path).stat().st_mtime for path in table.files())
    good = max(at for path, at in answers if path.startswith("/good/"))
    got = {row["track_id"]: row["error"] or "good" for row in table.read(["track_id", "error"]).to_pylist()}
    seen = Counter((kind, got.get(str(number), "again")) for number, kind in enumerate(kinds))
    print(f"\n{output}")
    rows = [[kind, FAULTS.get(kind, "good"), result, seen[kind, result]] for kind, result in sorted(seen)]
    print(tabulate(rows, ["behaviour", "expected", "outcome", "tracks"], tablefmt="github"))
    print(f"\nlast file written {ended - good:.1f} s after the last good answer; deadline {total_seconds} s")
    assert all(result == FAULTS.get(kind, "good") for kind, result in seen)


def kill_driver(process: subprocess.Popen[str], cluster: Cluster | None) -> None:
    process.kill()
    process.wait()


def kill_worker(process: subprocess.Popen[str], cluster: Cluster | None) -> None:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_text().startswith("ray::MapBatches(download_batch)"):
                os.kill(int(place.parent.name), signal.SIGKILL)
                return
        except OSError:
            continue
    raise AssertionError("no worker was downloading")


def kill_raylet(process: subprocess.Popen[str], cluster: Cluster | None) -> None:
    assert cluster
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)


@pytest.mark.parametrize("kill", [kill_driver, kill_worker, kill_raylet], ids=lambda kill: kill.__name__)
def test_kills(tmp_path: Path, kill: object) -> None:
    count = 1500
    library = Library.open(str(tmp_path / "library"))
    table = library.table("previews")
    cluster = None
    with host(latency_seconds=0.2, size=50_000) as url:
        catalogue(library, [f"{url}/good/{number}" for number in range(count)])
        if kill is kill_raylet:
            head = {"num_cpus": 2, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            for _ in range(2):
                cluster.add_node(num_cpus=2)
        try:
            address = cluster.address if cluster else ""
            options = (*UNLIMITED, "--rows-per-file", "32", "--downloads-per-worker", "8")
            process = job(library, *options, address=address)
            while table.finished_keys().size < count / 4:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            kill(process, cluster)  # type: ignore[operator]
            finished = set(table.finished_keys().tolist())
            output = finish(job(library, *options, address=address) if kill is kill_driver else process)
        finally:
            if cluster:
                cluster.shutdown()
        asked = Counter(path for path, _ in answered(url))
    keys = Counter(table.read(["track_key"])["track_key"].to_pylist())
    assert len(keys) == count and set(keys.values()) == {1} and finished <= set(keys)
    repeated = sum(number - 1 for number in asked.values())
    name = kill.__name__  # type: ignore[attr-defined]
    print(f"\n{name}: {len(finished)} of {count} tracks finished then, each there once in the end;")
    print(
        f"{repeated} requests repeated: what was in flight, or in a file not yet finished\n  {output.strip()}"
    )
