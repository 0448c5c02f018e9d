"""The download stage: beside a bare aiohttp loop, its memory, a mix of faults, and kills.

    make bench, or: python -m pytest -q -s --timeout=0 tests/benchmarks/bench_previews.py

Environment: FILES, 5000, of the comparison.
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

from songray.audio.download import ROW_GROUP_ROWS, SCHEMA, DownloadConfig
from songray.audio.fetch import is_audio
from songray.keys import track_key
from songray.library import Library
from songray.tables import TABLES

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
                take_responses(url)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def take_responses(url: str) -> list[tuple[str, float]]:
    """Path and time of each response since the last call."""
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
    """The plainest loop with as many requests in flight, the same checks and the same files."""
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
                write()

    def write() -> None:
        table = pa.Table.from_pylist(rows, SCHEMA)
        path = library.path(f"{rows[0]['track_key']}.parquet")
        pa.parquet.write_table(table, path, ROW_GROUP_ROWS, compression="none")
        rows.clear()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        in_flight = CONFIG.workers * CONFIG.fetch.downloads_per_worker
        await asyncio.gather(*(worker(session) for _ in range(in_flight)))
    if rows:
        write()


def rates(url: str) -> tuple[float, float]:
    """Files per second between the 10th and the 90th percentile of the responses, and over all of them."""
    times = np.sort([at for _, at in take_responses(url)])
    first, last = int(times.size * 0.1), int(times.size * 0.9)
    return (last - first) / (times[last] - times[first]), times.size / (times[-1] - times[0])


def test_beside_a_bare_loop(tmp_path: Path) -> None:
    rows = []
    with host() as url:
        for number in range(2):
            asyncio.run(bare_loop(url, tmp_path / f"bare{number}"))
            bare, bare_whole = rates(url)
            library = Library.open(str(tmp_path / f"library{number}"))
            catalogue(library, [f"{url}/good/{file}" for file in range(FILES)])
            finish(job(library, *UNLIMITED))
            stage, stage_whole = rates(url)
            assert library.table("previews").finished_keys().size == FILES
            megabytes = SIZE / 1e6
            rows.append([number, bare, bare * megabytes, stage, stage * megabytes, stage / bare,
                         stage_whole / bare_whole])  # fmt: skip
    in_flight = f"{CONFIG.workers} × {CONFIG.fetch.downloads_per_worker} in flight"
    print(f"\n{FILES} previews of {SIZE / 1e3:.0f} kB, {LATENCY_SECONDS * 1e3:.0f} ms latency, {in_flight}; ")
    print("rates between the 10th and the 90th percentile of the responses\n")
    heads = ["round", "bare files/s", "MB/s", "stage files/s", "MB/s", "ratio", "ratio of the whole"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".2f"))


def memory_of_tree(process: int) -> int:
    """Bytes of a process and its descendants; shared memory counts once."""
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
          "loop": "redirects", "huge": "too_large", "broken": "retried", "reset": "retried",
          "truncated": "retried", "wronglength": "retried", "drip": "retried", "silent": "retried",
          "busy": "good", "flaky": "good", "resetonce": "good"}  # fmt: skip


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
        responses = take_responses(url)
    ended = max(Path(path).stat().st_mtime for path in table.files())
    good = max(at for path, at in responses if path.startswith("/good/"))
    outcomes = {
        row["track_id"]: row["error"] or "good" for row in table.read(["track_id", "error"]).to_pylist()
    }
    tracks = Counter((kind, outcomes.get(str(number), "retried")) for number, kind in enumerate(kinds))
    print(f"\n{output}")
    rows = [[kind, FAULTS.get(kind, "good"), result, tracks[kind, result]] for kind, result in sorted(tracks)]
    print(tabulate(rows, ["behaviour", "expected", "outcome", "tracks"], tablefmt="github"))
    print(
        f"\nlast file written {ended - good:.1f} s after the last good response; deadline {total_seconds} s"
    )
    assert all(result == FAULTS.get(kind, "good") for kind, result in tracks)


def kill_driver(process: subprocess.Popen[str], cluster: Cluster | None) -> None:
    process.kill()
    process.wait()


def kill_worker(process: subprocess.Popen[str], cluster: Cluster | None) -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_text().startswith("ray::MapBatches(download_batch)"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                return
        except OSError:
            continue
    raise AssertionError("no worker is downloading")


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
        requests = Counter(path for path, _ in take_responses(url))
    keys = Counter(table.read(["track_key"])["track_key"].to_pylist())
    assert len(keys) == count and set(keys.values()) == {1} and finished <= set(keys)
    repeated = sum(number - 1 for number in requests.values())
    name = kill.__name__  # type: ignore[attr-defined]
    print(f"\n{name}: {len(finished)} of {count} tracks were finished then, each is stored once in the end;")
    print(f"{repeated} requests were repeated: those in flight, or of a file that was not finished")
    print(f"  {output.strip()}")
