"""The service over HTTP: questions a second beside plain FastAPI, and what fails while parts of it do.

Environment: SONGRAY_BENCH_TRACKS, 100000; SONGRAY_BENCH_SECONDS, 6, a measurement.
"""

from __future__ import annotations

import asyncio
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
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from songray import command

os.environ.update(command.proxy())  # before Ray starts

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
import ray
from bench_index import DIMENSION, clustered, described
from conftest import free_port, tone
from fastapi import FastAPI, Response
from ray import serve
from tabulate import tabulate

from songray.learning import runs
from songray.learning.models import MODELS
from songray.learning.runs import Encoder, Run
from songray.library import Library
from songray.search import ranking as recommender
from songray.search.build import IndexConfig, index
from songray.search.ranking import RankingOptions
from songray.search.version import Index
from songray.service.app import IngressConfig, ServeConfig, bound, served
from songray.service.routes import matches, shown
from songray.service.slots import manifest_of

TRACKS = int(os.environ.get("SONGRAY_BENCH_TRACKS", "100000"))
SECONDS = int(os.environ.get("SONGRAY_BENCH_SECONDS", "6"))
CONNECTIONS, ROUNDS = 8, 3
LIBRARY = "SONGRAY_BENCH_LIBRARY"  # where the peers find it
RANDOM_TRACK = """
math.randomseed(7)
request = function() return wrk.format("GET", "/v1/tracks/a:" .. math.random(0, {last}) .. "/similar") end
"""


@pytest.fixture(scope="module")
def library(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = Library.open(str(tmp_path_factory.mktemp("bench")))
    run = Run("bench", "mfcc", {}, {}, "default", {"train": 1, "validation": 1}, "", {}, {}, [])
    library.filesystem.create_dir(library.path("runs", "bench"), recursive=True)
    model = MODELS["mfcc"]().build()
    width = model.dimension
    scale = np.random.default_rng(0).normal(size=(width, DIMENSION)).astype(np.float32)
    runs.save(library, run, Encoder(model, np.zeros(width, np.float32), scale))
    add(library, 0, TRACKS)
    index(library, IndexConfig(links=16))
    return library


def peer() -> FastAPI:
    """Plain FastAPI: one question, nothing around it."""
    library = Library.open(os.environ[LIBRARY])
    opened = Index.open(library, manifest_of(library, "bench"))
    api = FastAPI()

    @api.get("/v1/tracks/{track_id:path}/similar")
    async def similar(track_id: str, k: int = 10) -> Response:
        seeds = await recommender.find(opened, [track_id])
        (row,) = await opened.rows(recommender.places(seeds.candidates))
        found = await recommender.nearest_to(
            opened, seeds.vectors[0], RankingOptions(k=k), seeds, seeds.candidates
        )
        return Response(orjson.dumps({"track": shown(row), "similar": matches(found)}))

    return api


def bare() -> FastAPI:
    """Our application, without Ray Serve around it."""
    from listening import Local

    from songray.service.app import equipped

    service = Local(Library.open(os.environ[LIBRARY]), "bench")
    return equipped(lambda: service, IngressConfig())


def add(library: Library, first: int, count: int) -> None:
    """Tracks `a:<n>` in clusters, ten an artist."""
    vectors = clustered(count, first + 1)
    rows = described(first + count).slice(first)
    library.table("tracks").append(rows, f"{first:09}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    embedded = {"track_key": rows["track_key"], "track_id": rows["track_id"], "embedding": column}
    library.table("embeddings", "bench").append(pa.table(embedded), f"{first:09}")


@contextmanager
def uvicorn(factory: str, library: Library) -> Iterator[str]:
    """An application of this file as one process; its URL."""
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
    """Answers a second, milliseconds of the median and the 99th percentile, errors."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    milliseconds = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    centiles = dict(re.findall(r"(50|99)%\s+([\d.]+[mu]?s)", text))
    told = {share: re.fullmatch(r"([\d.]+)([mu]?s)", value) for share, value in centiles.items()}
    bad = [*re.findall(r"Non-2xx or 3xx responses: (\d+)", text),
           *re.findall(r"(?:connect|read|write|timeout) (\d+)", text)]  # fmt: skip
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        **{f"p{share}": float(found[1]) * milliseconds[found[2]] for share, found in told.items()},
        "errors": sum(map(int, bad)),
    }


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_questions_a_second(library: Library, tmp_path: Path) -> None:
    """The same question of the same index, one process that answers each."""
    script = tmp_path / "random_track.lua"
    script.write_text(RANDOM_TRACK.format(last=TRACKS - 1))
    config = ServeConfig(port=free_port(), ingress=IngressConfig(encoders=0))
    with (
        served(library, config) as ours,
        uvicorn("peer", library) as plain,
        uvicorn("bare", library) as without_serve,
    ):
        places = {"plain FastAPI": plain, "songray, without Serve": without_serve, "songray": ours}
        found = {name: [] for name in places}
        for _ in range(ROUNDS):
            for name, url in places.items():
                found[name].append(wrk(url, script))
    keys = ("rate", "p50", "p99")
    best = {name: [median(one[key] for one in many) for key in keys] for name, many in found.items()}
    rows = [
        [name, *values, sum(one["errors"] for one in found[name]), values[0] / best["plain FastAPI"][0]]
        for name, values in best.items()
    ]
    opened = Index.open(library, manifest_of(library, "bench"))
    loop, started = asyncio.new_event_loop(), time.perf_counter()
    for number in range(300):
        loop.run_until_complete(recommender.similar(opened, f"a:{number}", RankingOptions()))
    milliseconds = (time.perf_counter() - started) / 0.3
    headers = ["", "questions/s", "p50 (ms)", "p99 (ms)", "errors", "of plain"]
    print(
        f"\n{TRACKS} × {DIMENSION}, {CONNECTIONS} connections; the recommender alone: {milliseconds:.2f} ms\n"
    )
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3g"))


class Load:
    """Clients that ask until they are told to stop; `expected` says whether an answer is right."""

    def __init__(
        self, ask: Callable[[httpx.Client], httpx.Response], right: Callable[[httpx.Response], bool]
    ):
        self.ask, self.right = ask, right
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
                        answer = self.ask(client)
                        kind = "right" if answer.status_code == 200 and self.right(answer) else "wrong"
                        kind = kind if answer.status_code == 200 else f"status {answer.status_code}"
                        if kind == "right" and answer.json()["partial"]:
                            kind = "partial"
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

    def row(self, name: str) -> list[object]:
        answered = ("right", "partial", "wrong")
        failed = {kind: count for kind, count in self.counts.items() if kind not in answered}
        told = ", ".join(f"{kind}: {count}" for kind, count in failed.items()) or 0
        return [name, *(self.counts[kind] for kind in answered), told, self.slowest]


def kill(deployment: str) -> None:
    """End one replica's process."""
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    name = next(name for name in names if f"{deployment}#" in name)
    ray.kill(ray.get_actor(name, namespace="serve"))


def test_what_fails_under_load(library: Library, tmp_path: Path) -> None:
    """A new version, dying replicas, slow and idle clients, while others go on asking."""
    sound = tone(tmp_path / "sound.flac", seconds=10).read_bytes()
    known: dict[str, dict[str, object]] = {}

    def ask(client: httpx.Client) -> httpx.Response:
        return client.get(f"/v1/tracks/a:{random.randrange(100)}/similar")

    def hear(client: httpx.Client) -> httpx.Response:
        return client.post("/v1/similar", files={"audio": ("sound.flac", sound)})

    def right(answer: httpx.Response) -> bool:
        """As each version has always answered, but for what a part would have added."""
        body = answer.json()
        if body["partial"]:
            return len(body["similar"]) == 10
        key = f"{body['version']} {body.get('track', {}).get('track_id', 'sound')}"
        found = [(one["track"]["track_id"], round(one["similarity"], 5)) for one in body["similar"]]
        return known.setdefault(key, found) == found

    rows = []
    ingress = IngressConfig(slots=0, replicas=2, max_replicas=2, encoders=2, watch_seconds=0.5)
    config = ServeConfig(port=free_port(), ingress=ingress)
    with served(library, config) as url:
        with Load(ask, right).running(url) as load:
            time.sleep(SECONDS)
        rows.append(load.row("nothing"))
        with Load(ask, right).running(url) as load:
            version = manifest_of(library, "bench").version
            add(library, TRACKS, 1000)
            index(library, IndexConfig(links=16))
            while httpx.get(f"{url}/readyz").json()["version"] == version:
                time.sleep(0.2)
            time.sleep(SECONDS)
        rows.append(load.row("a new version"))
        with Load(ask, right).running(url) as load:
            time.sleep(1)
            kill("ingress")
            time.sleep(SECONDS + 4)
        rows.append(load.row("one of 2 ingresses killed"))
        with Load(hear, right).running(url) as load:
            time.sleep(2)
            kill("encoder")
            time.sleep(SECONDS + 4)
        rows.append(load.row("one of 2 encoders killed"))
        with slow(url, 50), Load(ask, right).running(url) as load:
            time.sleep(SECONDS)
        rows.append(load.row("50 clients that send a byte a second"))
        with idle(url, 1000), Load(ask, right).running(url) as load:
            time.sleep(SECONDS)
        rows.append(load.row("1,000 idle connections"))
        serve.delete("songray")  # its CPUs are needed
        index(library, IndexConfig(links=16, shard_tracks=TRACKS // 4, compact=True))
        sliced = IngressConfig(slots=2, slot_replicas=2, encoders=0)
        serve.run(bound(library, sliced, ""), name="sliced", route_prefix="/sliced")
        with Load(ask, right).running(f"{url}/sliced") as load:
            time.sleep(1)
            kill("slot-1")
            time.sleep(SECONDS + 4)
        rows.append(load.row("one of 2 replicas of a slot killed"))
    headers = ["meanwhile", "right", "partial", "wrong", "failed", "slowest (s)"]
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
