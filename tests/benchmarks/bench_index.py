"""The index beside raw hnswlib, on clustered unit vectors: build, search, filters, text, storage.

Environment: SONGRAY_BENCH_TRACKS, 100000; SONGRAY_BENCH_MILLION=1 also runs four shards of together
SONGRAY_BENCH_MILLION_TRACKS, 1000000, by the stage itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hnswlib
import numpy as np
import psutil
import pyarrow as pa
import pytest
from tabulate import tabulate

from songray.learning import runs
from songray.learning.models import MODELS
from songray.learning.runs import Encoder, Run
from songray.library import REVISION_BITS, TABLES, Library, track_key
from songray.search import text as names
from songray.search.build import REFERENCE, IndexConfig, index
from songray.search.shard import Facets, Filters, Reference, Shard, describe, write
from songray.search.version import Index, Manifest

TRACKS = int(os.environ.get("SONGRAY_BENCH_TRACKS", "100000"))
MILLION = int(os.environ.get("SONGRAY_BENCH_MILLION_TRACKS", "1000000"))
DIMENSION, CLUSTERS, SPREAD = 128, 1000, 0.5
PARAMETERS = {"M": 16, "ef_construction": 200}
QUERIES, THREADS, ROUNDS, K = 2000, 2, 5, 10


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit vectors around centres that are the same for every seed."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, DIMENSION)).astype(np.float32)
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(0, CLUSTERS, count)]
    vectors += SPREAD * generator.normal(size=(count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def described(count: int) -> pa.Table:
    """Rows with names as music has them: few words are in many titles, most in few."""
    generator = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    lexicon = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(20_000)]
    weights = 1 / np.arange(10, len(lexicon) + 10)
    words = np.random.default_rng(0).choice(lexicon, (count, 6), p=weights / weights.sum())
    rows = [
        {"track_key": track_key(f"a:{number}", 0), "checksum": number, "track_id": f"a:{number}",
         "source": "a", "title": " ".join(words[number, :3]),
         "artist_names": [" ".join(words[number // 10, 3:5])],
         "artist_ids": [f"r{number // 10}"], "album": words[number, 5], "duration_seconds": 200.0,
         "genres": [f"one in 100: {number % 100}", f"one in 10: {number % 10}"], "crawl": 1}
        for number in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, pa.schema(TABLES["tracks"].columns))


def alternated(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The least seconds of each, called in turns, so that what else the machine does meets all."""
    taken = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, taken, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in taken]


def truth(vectors: np.ndarray, queries: np.ndarray, among: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Cosine of the K-th nearest of each query."""
    return np.partition(queries @ vectors[among].T, -K, axis=1)[:, -K]


def recall(cosines: np.ndarray, least: np.ndarray) -> float:
    return float((cosines >= least[:, None] - 2e-4).mean())


def raw_build(vectors: np.ndarray, path: Path) -> hnswlib.Index:
    graph = hnswlib.Index(space="cosine", dim=DIMENSION)
    graph.init_index(max_elements=len(vectors), random_seed=0, **PARAMETERS)
    graph.add_items(vectors, np.arange(len(vectors)), num_threads=THREADS)
    graph.save_index(str(path))
    return graph


Both = tuple[Index, hnswlib.Index]  # ours, and raw


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(TRACKS, 1)


@pytest.fixture(scope="module")
def built(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Built, with the table of how long that took."""
    rows = described(TRACKS)
    keys = rows["track_key"].to_numpy() >> REVISION_BITS
    drawn = np.argsort(keys)[:REFERENCE]
    reference = Reference(keys[drawn], vectors[drawn])
    whole, raw_whole = [], []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("shard")
        started = time.perf_counter()
        raw = raw_build(vectors, folder / "raw")
        raw_whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        ef, reached = write(folder, vectors, rows, reference, PARAMETERS, 0.99, threads=THREADS)
        whole.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as spare:
        started = time.perf_counter()
        names.write(Path(spare, "names"), rows, 0)
        describe(rows, vectors[:, :2], Reference(keys[drawn], vectors[drawn, :2]))
        beside = time.perf_counter() - started
    print(f"\n{TRACKS} × {DIMENSION}, M 16, ef_construction 200, {THREADS} threads")
    print(f"the tuner took ef {ef}, at which it measured recall@{K} {reached:.4f}\n")
    manifest = Manifest("bench", "000001", TRACKS, DIMENSION, PARAMETERS, ef, reached, 0.99, [], {})
    raw.set_ef(ef)
    raw.set_num_threads(THREADS)
    shard = Shard(folder)
    table = [
        [name, seconds, min(raw_whole), min(raw_whole) / seconds]
        for name, seconds in {
            "build: graph, vectors, hubness, map, recall (s)": min(whole) - beside,
            "build: with rows and text search (s)": min(whole),
        }.items()
    ]
    print(tabulate(table, ["", "ours", "raw hnswlib", "ratio"], "github", floatfmt=".3f"))
    yield Index(manifest, [shard]), raw


def test_search(built: Both, vectors: np.ndarray) -> None:
    ours, raw = built
    queries = clustered(QUERIES, 2)
    least = truth(vectors, queries)
    loop = asyncio.new_event_loop()

    async def singly() -> None:
        for query in queries:
            await ours.nearest(query[None], K)

    def raw_singly() -> None:
        for query in queries:
            raw.knn_query(query[None], k=K)

    batch, raw_batch = alternated(
        lambda: loop.run_until_complete(ours.nearest(queries, K)), lambda: raw.knn_query(queries, k=K)
    )
    one, raw_one = alternated(lambda: loop.run_until_complete(singly()), raw_singly)
    found = loop.run_until_complete(ours.nearest(queries, K))
    cosines, raw_cosines = np.stack([row["cosine"] for row in found]), 1 - raw.knn_query(queries, k=K)[1]
    recalls = recall(cosines, least), recall(raw_cosines, least)
    table = [
        ["search, all queries at once (1/s)", QUERIES / batch, QUERIES / raw_batch, raw_batch / batch],
        ["search, one by one (1/s)", QUERIES / one, QUERIES / raw_one, raw_one / one],
        [f"recall@{K}", *recalls, recalls[0] / recalls[1]],
    ]
    print(f"\n{tabulate(table, ['', 'ours', 'raw hnswlib', 'ratio'], 'github', floatfmt='.4g')}")


def test_filtered_search(built: Both, vectors: np.ndarray) -> None:
    ours, _ = built
    queries = clustered(200, 3)
    loop = asyncio.new_event_loop()
    table = []
    for every in (100, 10, 2):
        filters = Filters(include=Facets(genres=(f"one in {every}: 3",)) if every > 2 else Facets(
            genres=tuple(f"one in 10: {number}" for number in range(5))))  # fmt: skip
        among = np.arange(TRACKS) % every == 3 if every > 2 else np.arange(TRACKS) % 10 < 5
        least = truth(vectors, queries, among)
        fitting = vectors[among]

        async def singly(filters: Filters = filters) -> list[np.ndarray]:
            return [(await ours.nearest(query[None], K, filters))[0]["cosine"] for query in queries]

        def exact(fitting: np.ndarray = fitting) -> None:
            for query in queries:
                np.argpartition(-(fitting @ query), K)[:K]

        cosines = np.stack(loop.run_until_complete(singly()))
        mine, other = alternated(lambda: loop.run_until_complete(singly()), exact, rounds=3)
        table.append([f"{among.mean():.0%}", recall(cosines, least), 200 / mine, 200 / other, other / mine])
    heads = ["fit", f"recall@{K}", "ours (1/s)", "exact, in float32, from memory (1/s)", "ratio"]
    print(f"\n{tabulate(table, heads, 'github', floatfmt='.4g')}")


def test_text_search(built: Both) -> None:
    ours, _ = built
    loop = asyncio.new_event_loop()
    places = [(0, number) for number in np.random.default_rng(4).integers(0, TRACKS, 100).tolist()]
    rows = loop.run_until_complete(ours.rows(places))
    titles = [row["title"] for row in rows]
    kinds = {
        "title and artist": [f"{row['title']} {row['artist_names'][0]}" for row in rows],
        "title": titles,
        "swapped letters": [one[:2] + one[3] + one[2] + one[4:] if len(one) > 4 else one for one in titles],
        "beginning": [one[: max(5, len(one) * 2 // 3)] for one in titles],
        "one word": [one.split()[0] for one in titles],
    }
    table = []
    for kind, texts in kinds.items():
        seconds, first = [], 0
        for text, place, row in zip(texts, places, rows, strict=True):
            started = time.perf_counter()
            found = loop.run_until_complete(ours.search(text, 20))
            seconds.append(time.perf_counter() - started)
            shown = loop.run_until_complete(ours.rows(found))
            first += place in found or row["title"] in [one["title"] for one in shown]
        table.append([kind, *(1000 * np.quantile(seconds, (0.5, 0.99, 1))), first])
    heads = ["text", "p50 (ms)", "p99 (ms)", "most (ms)", "among the first 20, of 100"]
    print(f"\n{tabulate(table, heads, 'github', floatfmt='.1f')}")


def test_storage(vectors: np.ndarray) -> None:
    """What exact search among a filter's tracks finds, by how the vectors of that second stage are stored."""
    queries = clustered(QUERIES, 5)
    least = truth(vectors, queries)
    scale = 127 / np.abs(vectors).max(axis=1, keepdims=True)
    stored = {
        "float32": (vectors, 4 * DIMENSION),
        "float16": (vectors.astype(np.float16).astype(np.float32), 2 * DIMENSION),
        "int8, a scale a track": (np.round(vectors * scale) / scale, DIMENSION + 4),
    }
    table = []
    for name, (kept, size) in stored.items():
        top = np.argpartition(-(queries @ kept.T), K, axis=1)[:, :K]
        cosines = np.take_along_axis(queries @ vectors.T, top, axis=1)
        table.append([name, size, float((cosines >= least[:, None] - 1e-6).mean())])
    print(f"\n{tabulate(table, ['second stage', 'bytes a track', f'recall@{K}'], 'github', floatfmt='.4f')}")


@pytest.mark.skipif(not os.environ.get("SONGRAY_BENCH_MILLION"), reason="SONGRAY_BENCH_MILLION is not set")
def test_a_million_in_four_shards(cluster: None, tmp_path: Path) -> None:
    library = Library.open(str(tmp_path))
    model = MODELS["mfcc"]().build()
    run = Run("bench", "mfcc", {}, {}, "default", {"train": 1, "validation": 1}, "", {}, {}, [])
    library.filesystem.create_dir(library.path("runs", "bench"), recursive=True)
    encoder = Encoder(model, np.zeros(DIMENSION, np.float32), np.ones(DIMENSION, np.float32))
    runs.save(library, run, encoder)
    every = clustered(MILLION, 1)
    for rows, part in zip(_parts(MILLION), np.array_split(every, 10), strict=True):
        library.table("tracks").append(rows, "tracks")
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), DIMENSION)
        embedded = {"track_key": rows["track_key"], "track_id": rows["track_id"], "embedding": column}
        library.table("embeddings", "bench").append(pa.table(embedded), "embeddings")
    started = time.perf_counter()
    config = IndexConfig("bench", links=16, shard_tracks=-(-MILLION // 4), threads=1)
    manifest = index(library, config).manifest
    build = time.perf_counter() - started
    before = psutil.Process().memory_full_info().uss
    started = time.perf_counter()
    opened = Index.open(library, manifest)
    opening = time.perf_counter() - started
    memory = psutil.Process().memory_full_info().uss - before
    queries = clustered(QUERIES, 2)
    loop = asyncio.new_event_loop()
    (seconds,) = alternated(lambda: loop.run_until_complete(opened.nearest(queries, K)), rounds=3)
    found = loop.run_until_complete(opened.nearest(queries, K))
    cosines = np.stack([row["cosine"] for row in found])
    table = [
        ["shards", len(manifest.shards)],
        ["build, with reading (s)", build],
        ["open, with checksums (s)", opening],
        ["memory a track, without mapped files (bytes)", memory / MILLION],
        ["ef", manifest.ef],
        ["search (1/s)", QUERIES / seconds],
        [f"recall@{K}", recall(cosines, truth(every, queries))],
        [f"recall@{K} in the manifest", manifest.recall],
    ]
    print(f"\n{MILLION} tracks\n\n{tabulate(table, tablefmt='github', floatfmt='.4g')}")


def _parts(count: int) -> Iterator[pa.Table]:
    whole = described(count)
    for part in np.array_split(np.arange(count), 10):
        yield whole.slice(part[0], len(part))
