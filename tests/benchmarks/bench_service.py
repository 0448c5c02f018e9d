"""The service over HTTP: requests per second beside plain FastAPI, and responses while parts of it fail.

Environment: SONGRAY_BENCH_TRACKS, 100000; SONGRAY_BENCH_SECONDS, 6, of each measurement.
"""

# ruff: noqa: E402  (Ray Serve reads the environment when it is imported)

from __future__ import annotations

import asyncio
import atexit
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from songray.service.haproxy import haproxy_environment

HAPROXY = ExitStack()
os.environ.update(HAPROXY.enter_context(haproxy_environment()))
atexit.register(HAPROXY.close)

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
import ray
from bench_index import DIMENSION, clustered, track_rows
from conftest import free_port, tone
from fastapi import FastAPI, Response
from ray import serve
from serving import LocalService
from tabulate import tabulate

from songray.learning.encoder import ModelEncoder, save
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.runs import Run
from songray.library import Library
from songray.search import ranking
from songray.search.build import IndexConfig, index
from songray.search.index import Index
from songray.search.ranking import RankingOptions
from songray.service.api import create_api
from songray.service.api_keys import ApiKeys
from songray.service.app import bind, served
from songray.service.options import IngressConfig, ServeConfig
from songray.service.responses import matches_json, track_json
from songray.service.snapshots import find_version

TRACKS = int(os.environ.get("SONGRAY_BENCH_TRACKS", "100000"))
SECONDS = int(os.environ.get("SONGRAY_BENCH_SECONDS", "6"))
CONNECTIONS, ROUNDS = 8, 3
LIBRARY = "SONGRAY_BENCH_LIBRARY"  # variable that names the library of the peers
RANDOM_TRACK = """
math.randomseed(7)
request = function() return wrk.format("GET", "/v1/tracks/a:" .. math.random(0, {last}) .. "/similar") end
"""


@pytest.fixture(scope="module")
def library(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = Library.open(str(tmp_path_factory.mktemp("bench")))
    run = Run("bench", "mfcc", {}, {}, "default", {"train": 1, "validation": 1}, "", {}, {}, [])
    model = build(MODELS["mfcc"]())
    width = model.dimension
    scale = np.random.default_rng(0).normal(size=(width, DIMENSION)).astype(np.float32)
    save(library, run, ModelEncoder(model, np.zeros(width, np.float32), scale))
    add(library, 0, TRACKS)
    index(library, IndexConfig(links=16))
    return library


def peer() -> FastAPI:
    """Plain FastAPI: one route, without middlewares."""
    library = Library.open(os.environ[LIBRARY])
    opened = Index.open(library, find_version(library, "bench"))
    api = FastAPI()

    @api.get("/v1/tracks/{track_id:path}/similar")
    async def similar(track_id: str, k: int = 10) -> Response:
        seeds = await ranking.find(opened, [track_id])
        (row,) = await opened.rows(ranking.places(seeds.candidates))
        options = RankingOptions(k=k)
        near = await ranking.nearest_to(opened, seeds.vectors[0], options, seeds, seeds.candidates)
        return Response(orjson.dumps({"track": track_json(row), "similar": matches_json(near)}))

    return api


def bare() -> FastAPI:
    """The application of songray, without Ray Serve."""
    service = LocalService(Library.open(os.environ[LIBRARY]), "bench")
    return create_api(lambda: service, IngressConfig(), ApiKeys())


def add(library: Library, first: int, count: int) -> None:
    """Tracks `a:<n>` in clusters, ten an artist."""
    vectors = clustered(count, first + 1)
    rows = track_rows(first + count).slice(first)
    library.table("tracks").append(rows, f"{first:09}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    embedded = {"track_key": rows["track_key"], "track_id": rows["track_id"], "embedding": column}
    library.table("embeddings", "bench").append(pa.table(embedded), f"{first:09}")


@contextmanager
def uvicorn(factory: str, library: Library) -> Iterator[str]:
    """Serve an application of this file from one process; yields its URL."""
    port = free_port()
    options = ["--factory", "--port", str(port), "--log-level", "error", "--no-access-log"]
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", f"bench_service:{factory}", *options],
        env=os.environ | {LIBRARY: library.root, "PYTHONPATH": os.pathsep.join(folders)},
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{url}/v1/tracks/a:0/similar").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait()


def wrk(url: str, script: Path) -> dict[str, float]:
    """Responses per second, latency at the median and the 99th percentile in milliseconds, and errors."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    milliseconds = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    centiles = dict(re.findall(r"(50|99)%\s+([\d.]+[mu]?s)", text))
    latencies = {share: re.fullmatch(r"([\d.]+)([mu]?s)", value) for share, value in centiles.items()}
    errors = [*re.findall(r"Non-2xx or 3xx responses: (\d+)", text),
              *re.findall(r"(?:connect|read|write|timeout) (\d+)", text)]  # fmt: skip
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        **{f"p{share}": float(match[1]) * milliseconds[match[2]] for share, match in latencies.items()},
        "errors": sum(map(int, errors)),
    }


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_requests_per_second(library: Library, tmp_path: Path) -> None:
    """The same requests to the same index, each service in one process."""
    script = tmp_path / "random_track.lua"
    script.write_text(RANDOM_TRACK.format(last=TRACKS - 1))
    config = ServeConfig(port=free_port(), ingress=IngressConfig(encoders=0))
    with (
        served(library, config) as deployed,
        uvicorn("peer", library) as plain,
        uvicorn("bare", library) as without_serve,
    ):
        urls = {"plain FastAPI": plain, "songray, without Serve": without_serve, "songray": deployed}
        measured = {name: [] for name in urls}
        for _ in range(ROUNDS):
            for name, url in urls.items():
                measured[name].append(wrk(url, script))
    keys = ("rate", "p50", "p99")
    medians = {
        name: [median(run[key] for run in repeated) for key in keys] for name, repeated in measured.items()
    }
    rows = [
        [name, *values, sum(run["errors"] for run in measured[name]), values[0] / medians["plain FastAPI"][0]]
        for name, values in medians.items()
    ]
    opened = Index.open(library, find_version(library, "bench"))
    loop, started = asyncio.new_event_loop(), time.perf_counter()
    for number in range(300):
        loop.run_until_complete(ranking.similar(opened, f"a:{number}", RankingOptions()))
    milliseconds = (time.perf_counter() - started) / 0.3
    headers = ["", "requests/s", "p50 (ms)", "p99 (ms)", "errors", "relative to plain"]
    print(f"\n{TRACKS} × {DIMENSION}, {CONNECTIONS} connections; ranking alone: {milliseconds:.2f} ms\n")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3g"))


class Load:
    """Clients that send requests until the context ends; `is_correct` checks a response with status 200."""

    def __init__(
        self, send: Callable[[httpx.Client], httpx.Response], is_correct: Callable[[httpx.Response], bool]
    ) -> None:
        self.send, self.is_correct = send, is_correct
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0

    @contextmanager
    def running(self, url: str, clients: int = 4) -> Iterator[Load]:
        ended = threading.Event()

        def run() -> None:
            with httpx.Client(base_url=url, timeout=60) as client:
                while not ended.is_set():
                    started = time.perf_counter()
                    try:
                        kind = self.kind(self.send(client))
                    except httpx.TransportError as error:
                        kind = type(error).__name__
                    self.counts[kind] += 1
                    self.slowest = max(self.slowest, time.perf_counter() - started)

        threads = [threading.Thread(target=run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        yield self
        ended.set()
        for thread in threads:
            thread.join()

    def kind(self, response: httpx.Response) -> str:
        if response.status_code != 200:
            return f"status {response.status_code}"
        if not self.is_correct(response):
            return "wrong"
        return "partial" if response.json()["partial"] else "correct"

    def row(self, name: str) -> list[object]:
        kinds = ("correct", "partial", "wrong")
        failed = ", ".join(f"{kind}: {count}" for kind, count in self.counts.items() if kind not in kinds)
        return [name, *(self.counts[kind] for kind in kinds), failed or 0, self.slowest]


def kill(deployment: str) -> None:
    """Kill the process of one replica."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    name = next(name for name in names if f"{deployment}#" in name)
    ray.kill(ray.get_actor(name, namespace="serve"))


def test_failures_under_load(library: Library, tmp_path: Path) -> None:
    """A new version, replicas that die, and slow and idle clients, while other clients send requests."""
    sound = tone(tmp_path / "sound.flac", seconds=10).read_bytes()
    expected: dict[str, list[tuple[str, float]]] = {}

    def request(client: httpx.Client) -> httpx.Response:
        return client.get(f"/v1/tracks/a:{random.randrange(100)}/similar")

    def upload(client: httpx.Client) -> httpx.Response:
        return client.post("/v1/similar", files={"audio": ("sound.flac", sound)})

    def is_correct(response: httpx.Response) -> bool:
        """Whether a complete result equals those before it from the same version."""
        body = response.json()
        if body["partial"]:
            return len(body["similar"]) == 10
        key = f"{body['version']} {body.get('track', {}).get('track_id', 'sound')}"
        result = [(match["track"]["track_id"], round(match["similarity"], 5)) for match in body["similar"]]
        return expected.setdefault(key, result) == result

    rows = []
    ingress = IngressConfig(slots=0, replicas=2, max_replicas=2, encoders=2, watch_seconds=0.5)
    config = ServeConfig(port=free_port(), ingress=ingress)
    with served(library, config) as url:
        with Load(request, is_correct).running(url) as load:
            time.sleep(SECONDS)
        rows.append(load.row("nothing"))
        with Load(request, is_correct).running(url) as load:
            version = find_version(library, "bench").version
            add(library, TRACKS, 1000)
            index(library, IndexConfig(links=16))
            while httpx.get(f"{url}/readyz").json()["version"] == version:
                time.sleep(0.2)
            time.sleep(SECONDS)
        rows.append(load.row("a new version"))
        with Load(request, is_correct).running(url) as load:
            time.sleep(1)
            kill("ingress")
            time.sleep(SECONDS + 4)
        rows.append(load.row("one of 2 ingresses killed"))
        with Load(upload, is_correct).running(url) as load:
            time.sleep(2)
            kill("encoder")
            time.sleep(SECONDS + 4)
        rows.append(load.row("one of 2 encoders killed"))
        with slow(url, 50), Load(request, is_correct).running(url) as load:
            time.sleep(SECONDS)
        rows.append(load.row("50 clients that send a byte a second"))
        with idle(url, 1000), Load(request, is_correct).running(url) as load:
            time.sleep(SECONDS)
        rows.append(load.row("1,000 idle connections"))
        serve.delete("songray")  # its CPUs are needed
        index(library, IndexConfig(links=16, shard_tracks=TRACKS // 4, compact=True))
        sliced = IngressConfig(slots=2, slot_replicas=2, encoders=0)
        serve.run(bind(library, sliced, ""), name="sliced", route_prefix="/sliced")
        with Load(request, is_correct).running(f"{url}/sliced") as load:
            time.sleep(1)
            kill("slot-1")
            time.sleep(SECONDS + 4)
        rows.append(load.row("one of 2 replicas of a slot killed"))
    headers = ["meanwhile", "correct", "partial", "wrong", "failed", "slowest (s)"]
    print(f"\n{tabulate(rows, headers, tablefmt='github', floatfmt='.2f')}")
    assert not any(row[3] for row in rows)


@contextmanager
def slow(url: str, count: int) -> Iterator[None]:
    """Clients that send their request a byte a second."""
    ended = threading.Event()
    text = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
    with idle(url, count) as connections:

        def drip() -> None:
            for connection in connections:
                connection.sendall(text)
            while not ended.wait(1):
                for connection in connections:
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        yield
        ended.set()
        thread.join()


@contextmanager
def idle(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections over which nothing is sent."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connections = [socket.create_connection((host, int(port))) for _ in range(count)]
    yield connections
    for connection in connections:
        connection.close()
