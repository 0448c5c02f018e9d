"""The index beside raw hnswlib, on clustered unit vectors: build, search, filters, text, storage.

Environment: SONGRAY_BENCH_TRACKS, 100000; SONGRAY_BENCH_MILLION=1 also has the stage build four shards, of
SONGRAY_BENCH_MILLION_TRACKS, 1000000, together.
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

from songray.keys import REVISION_BITS, track_key
from songray.learning.encoder import ModelEncoder, save
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.runs import Run
from songray.library import Library
from songray.search import text
from songray.search.build import REFERENCE_TRACKS, IndexConfig, index
from songray.search.filters import Facets, Filters
from songray.search.hnsw import GraphOptions
from songray.search.index import Index
from songray.search.reference import Reference
from songray.search.shard import Shard
from songray.search.shard_files import with_computed_columns, write_shard
from songray.search.version import Version
from songray.tables import TABLES

TRACKS = int(os.environ.get("SONGRAY_BENCH_TRACKS", "100000"))
MILLION = int(os.environ.get("SONGRAY_BENCH_MILLION_TRACKS", "1000000"))
DIMENSION, CLUSTERS, SPREAD = 128, 1000, 0.5
PARAMETERS = {"M": 16, "ef_construction": 200}
QUERIES, THREADS, ROUNDS, K = 2000, 2, 5, 10


def clustered(count: int, seed: int, dimension: int = DIMENSION, clusters: int = CLUSTERS) -> np.ndarray:
    """Unit vectors, (count, dimension), around centres that are the same for every seed."""
    centres = np.random.default_rng(0).normal(size=(clusters, dimension)).astype(np.float32)
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(0, clusters, count)]
    vectors += SPREAD * generator.standard_normal((count, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def track_rows(count: int) -> pa.Table:
    """Rows of `tracks` whose words have a Zipf distribution, as in real titles."""
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
         "genres": [f"100 genres: {number % 100}", f"10 genres: {number % 10}"], "crawl": 1}
        for number in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, pa.schema(TABLES["tracks"].columns))


def alternated(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The least seconds of each call; calls alternate, so that other programs slow down all of them."""
    measured = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, measured, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in measured]


def kth_cosine(
    vectors: np.ndarray, queries: np.ndarray, subset: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """Cosine of the K-th nearest vector of each query, by exact search: (queries,)."""
    return np.partition(queries @ vectors[subset].T, -K, axis=1)[:, -K]


def recall(cosines: np.ndarray, least: np.ndarray) -> float:
    return float((cosines >= least[:, None] - 2e-4).mean())


def raw_build(vectors: np.ndarray, path: Path) -> hnswlib.Index:
    graph = hnswlib.Index(space="cosine", dim=DIMENSION)
    graph.init_index(max_elements=len(vectors), random_seed=0, **PARAMETERS)
    graph.add_items(vectors, np.arange(len(vectors)), num_threads=THREADS)
    graph.save_index(str(path))
    return graph


Indexes = tuple[Index, hnswlib.Index]  # of songray, and of raw hnswlib


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(TRACKS, 1)


@pytest.fixture(scope="module")
def built(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexes]:
    """Builds both indexes, and prints the seconds of each build."""
    rows = track_rows(TRACKS)
    keys = rows["track_key"].to_numpy() >> REVISION_BITS
    sample = np.argsort(keys)[:REFERENCE_TRACKS]
    reference = Reference(keys[sample], vectors[sample])
    options = GraphOptions(PARAMETERS, 0.99, THREADS)
    whole, raw_whole = [], []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("shard")
        started = time.perf_counter()
        raw = raw_build(vectors, folder / "raw")
        raw_whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        ef, reached = write_shard(folder, vectors, rows, reference, options)
        whole.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as spare:
        started = time.perf_counter()
        text.add_tracks(Path(spare, "names"), rows, first=0)
        with_computed_columns(rows, vectors[:, :2], Reference(keys[sample], vectors[sample, :2]))
        rows_and_text = time.perf_counter() - started
    print(f"\n{TRACKS} × {DIMENSION}, M 16, ef_construction 200, {THREADS} threads")
    print(f"the smallest sufficient ef is {ef}, with a measured recall@{K} of {reached:.4f}\n")
    version = Version("bench", "000001", TRACKS, DIMENSION, PARAMETERS, ef, reached, 0.99, [], {})
    raw.set_ef(ef)
    raw.set_num_threads(THREADS)
    shard = Shard(folder)
    table = [
        [name, seconds, min(raw_whole), min(raw_whole) / seconds]
        for name, seconds in {
            "build: graph, vectors, map, recall (s)": min(whole) - rows_and_text,
            "build: with rows and text search (s)": min(whole),
        }.items()
    ]
    print(tabulate(table, ["", "songray", "raw hnswlib", "ratio"], "github", floatfmt=".3f"))
    yield Index(version, [shard]), raw


def test_search(built: Indexes, vectors: np.ndarray) -> None:
    opened, raw = built
    queries = clustered(QUERIES, 2)
    least = kth_cosine(vectors, queries)
    loop = asyncio.new_event_loop()

    async def search_singly() -> None:
        for query in queries:
            await opened.nearest(query[None], K)

    def raw_singly() -> None:
        for query in queries:
            raw.knn_query(query[None], k=K)

    batch, raw_batch = alternated(
        lambda: loop.run_until_complete(opened.nearest(queries, K)), lambda: raw.knn_query(queries, k=K)
    )
    single, raw_single = alternated(lambda: loop.run_until_complete(search_singly()), raw_singly)
    nearest = loop.run_until_complete(opened.nearest(queries, K))
    cosines, raw_cosines = np.stack([row["cosine"] for row in nearest]), 1 - raw.knn_query(queries, k=K)[1]
    recalls = recall(cosines, least), recall(raw_cosines, least)
    table = [
        ["search, all queries at once (1/s)", QUERIES / batch, QUERIES / raw_batch, raw_batch / batch],
        ["search, query by query (1/s)", QUERIES / single, QUERIES / raw_single, raw_single / single],
        [f"recall@{K}", *recalls, recalls[0] / recalls[1]],
    ]
    print(f"\n{tabulate(table, ['', 'songray', 'raw hnswlib', 'ratio'], 'github', floatfmt='.4g')}")


def test_filtered_search(built: Indexes, vectors: np.ndarray) -> None:
    opened, _ = built
    queries = clustered(200, 3)
    loop = asyncio.new_event_loop()
    table = []
    for every in (100, 10, 2):
        filters = Filters(include=Facets(genres=(f"{every} genres: 3",)) if every > 2 else Facets(
            genres=tuple(f"10 genres: {number}" for number in range(5))))  # fmt: skip
        matching = np.arange(TRACKS) % every == 3 if every > 2 else np.arange(TRACKS) % 10 < 5
        least = kth_cosine(vectors, queries, matching)
        candidates = vectors[matching]

        async def search_singly(filters: Filters = filters) -> list[np.ndarray]:
            return [(await opened.nearest(query[None], K, filters))[0]["cosine"] for query in queries]

        def exact(candidates: np.ndarray = candidates) -> None:
            for query in queries:
                np.argpartition(-(candidates @ query), K)[:K]

        cosines = np.stack(loop.run_until_complete(search_singly()))
        filtered, brute_force = alternated(lambda: loop.run_until_complete(search_singly()), exact, rounds=3)
        rates = [200 / filtered, 200 / brute_force, brute_force / filtered]
        table.append([f"{matching.mean():.0%}", recall(cosines, least), *rates])
    heads = ["matching", f"recall@{K}", "songray (1/s)", "exact, in float32, from memory (1/s)", "ratio"]
    print(f"\n{tabulate(table, heads, 'github', floatfmt='.4g')}")


def test_text_search(built: Indexes) -> None:
    opened, _ = built
    loop = asyncio.new_event_loop()
    places = [(0, number) for number in np.random.default_rng(4).integers(0, TRACKS, 100).tolist()]
    rows = loop.run_until_complete(opened.rows(places))
    titles = [row["title"] for row in rows]
    kinds = {
        "title and artist": [f"{row['title']} {row['artist_names'][0]}" for row in rows],
        "title": titles,
        "swapped letters": [
            title[:2] + title[3] + title[2] + title[4:] if len(title) > 4 else title for title in titles
        ],
        "beginning": [title[: max(5, len(title) * 2 // 3)] for title in titles],
        "first word": [title.split()[0] for title in titles],
    }
    table = []
    for kind, texts in kinds.items():
        seconds, ranked = [], 0
        for query, place, row in zip(texts, places, rows, strict=True):
            started = time.perf_counter()
            matches = loop.run_until_complete(opened.search(query, 20))
            seconds.append(time.perf_counter() - started)
            titles_of_matches = [match["title"] for match in loop.run_until_complete(opened.rows(matches))]
            ranked += place in matches or row["title"] in titles_of_matches
        table.append([kind, *(1000 * np.quantile(seconds, (0.5, 0.99, 1))), ranked])
    heads = ["text", "p50 (ms)", "p99 (ms)", "slowest (ms)", "of 100, among the first 20"]
    print(f"\n{tabulate(table, heads, 'github', floatfmt='.1f')}")


def test_storage(vectors: np.ndarray) -> None:
    """Recall of exact search among the tracks of a filter, by the type in which their vectors are stored."""
    queries = clustered(QUERIES, 5)
    least = kth_cosine(vectors, queries)
    scale = 127 / np.abs(vectors).max(axis=1, keepdims=True)
    stored = {
        "float32": (vectors, 4 * DIMENSION),
        "float16": (vectors.astype(np.float16).astype(np.float32), 2 * DIMENSION),
        "int8, with a scale for each track": (np.round(vectors * scale) / scale, DIMENSION + 4),
    }
    table = []
    for name, (rounded, size) in stored.items():
        top = np.argpartition(-(queries @ rounded.T), K, axis=1)[:, :K]
        cosines = np.take_along_axis(queries @ vectors.T, top, axis=1)
        table.append([name, size, float((cosines >= least[:, None] - 1e-6).mean())])
    print(f"\n{tabulate(table, ['type', 'bytes a track', f'recall@{K}'], 'github', floatfmt='.4f')}")


@pytest.mark.skipif(not os.environ.get("SONGRAY_BENCH_MILLION"), reason="SONGRAY_BENCH_MILLION is not set")
def test_a_million_in_four_shards(cluster: None, tmp_path: Path) -> None:
    library = Library.open(str(tmp_path))
    model = build(MODELS["mfcc"]())
    run = Run("bench", "mfcc", {}, {}, "default", {"train": 1, "validation": 1}, "", {}, {}, [])
    encoder = ModelEncoder(model, np.zeros(DIMENSION, np.float32), np.ones(DIMENSION, np.float32))
    save(library, run, encoder)
    every = clustered(MILLION, 1)
    for rows, part in zip(_parts(MILLION), np.array_split(every, 10), strict=True):
        library.table("tracks").append(rows, "tracks")
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), DIMENSION)
        embedded = {"track_key": rows["track_key"], "track_id": rows["track_id"], "embedding": column}
        library.table("embeddings", "bench").append(pa.table(embedded), "embeddings")
    started = time.perf_counter()
    config = IndexConfig("bench", links=16, shard_tracks=-(-MILLION // 4), threads=1)
    version = index(library, config).version
    building = time.perf_counter() - started
    before = psutil.Process().memory_full_info().uss
    started = time.perf_counter()
    opened = Index.open(library, version)
    opening = time.perf_counter() - started
    memory = psutil.Process().memory_full_info().uss - before
    queries = clustered(QUERIES, 2)
    loop = asyncio.new_event_loop()
    (seconds,) = alternated(lambda: loop.run_until_complete(opened.nearest(queries, K)), rounds=3)
    nearest = loop.run_until_complete(opened.nearest(queries, K))
    cosines = np.stack([row["cosine"] for row in nearest])
    table = [
        ["shards", len(version.shards)],
        ["build, with reading (s)", building],
        ["open, with checksums (s)", opening],
        ["memory a track, without mapped files (bytes)", memory / MILLION],
        ["ef", version.ef],
        ["search (1/s)", QUERIES / seconds],
        [f"recall@{K}", recall(cosines, kth_cosine(every, queries))],
        [f"recall@{K} in the manifest", version.recall],
    ]
    print(f"\n{MILLION} tracks\n\n{tabulate(table, tablefmt='github', floatfmt='.4g')}")


def _parts(count: int) -> Iterator[pa.Table]:
    rows = track_rows(count)
    for part in np.array_split(np.arange(count), 10):
        yield rows.slice(part[0], len(part))
