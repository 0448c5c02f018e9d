"""Graphs in 32 and in 8 bits a number beside faiss's and usearch's own, on clustered unit vectors: bytes,
recall and queries a second, in one run; at 100 million by the formula of each.

Environment: SONGRAY_BENCH_TRACKS, 1000000; SONGRAY_BENCH_DIMENSION, 64. usearch is compared where it is
installed.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from bench_index import clustered
from tabulate import tabulate

from songray.search.graphs import FloatGraph, QuantisedGraph, open_graph, search

TRACKS = int(os.environ.get("SONGRAY_BENCH_TRACKS", "1000000"))
DIMENSION = int(os.environ.get("SONGRAY_BENCH_DIMENSION", "64"))
CLUSTERS, QUERIES, K, ROUNDS = 10_000, 2000, 10, 3
PARAMETERS, THREADS = {"M": 16, "ef_construction": 200}, 2
EFS = (32, 64, 96, 128, 192, 256, 384, 512)
RECALL = 0.99


class Built(NamedTuple):
    seconds: float
    file_bytes: int


class Searched(NamedTuple):
    private_bytes: int  # that no file backs, after the index was opened and searched
    ef: int  # the smallest that reaches the recall, else the largest; for IVF, probes
    recall: float
    queries_a_second: float


def int8_codes(vectors: np.ndarray) -> np.ndarray:
    """usearch compares by the angle: each vector is scaled to the whole range of int8."""
    return np.round(vectors * (127 / np.abs(vectors).max(axis=1, keepdims=True))).astype(np.int8)


def build_songray(quantised: bool) -> Callable[[np.ndarray, Path], None]:
    def build(vectors: np.ndarray, folder: Path) -> None:
        kind = QuantisedGraph if quantised else FloatGraph
        sized = vectors if quantised else len(vectors)
        graph = kind.new(DIMENSION, PARAMETERS, sized)
        graph.add(vectors, THREADS)
        graph.save(folder)

    return build


def open_songray(folder: Path) -> Callable[[np.ndarray, int], np.ndarray]:
    graph = open_graph(folder, DIMENSION)
    halves = np.load(folder.parent / "halves.npy", mmap_mode="r")

    def vectors(labels: np.ndarray) -> np.ndarray:
        return halves[labels].astype(np.float32)

    def nearest(queries: np.ndarray, ef: int) -> np.ndarray:
        return search(graph, vectors, queries, K, ef)[0]

    return nearest


def build_faiss(description: str) -> Callable[[np.ndarray, Path], None]:
    def build(vectors: np.ndarray, folder: Path) -> None:
        faiss.omp_set_num_threads(THREADS)
        index = faiss.index_factory(DIMENSION, description, faiss.METRIC_INNER_PRODUCT)
        if hasattr(index, "hnsw"):
            index.hnsw.efConstruction = PARAMETERS["ef_construction"]
        index.train(vectors[:200_000])
        index.add(vectors)
        faiss.write_index(index, str(folder / "index"))

    return build


def open_faiss(folder: Path) -> Callable[[np.ndarray, int], np.ndarray]:
    faiss.omp_set_num_threads(THREADS)
    index = faiss.read_index(str(folder / "index"))

    def nearest(queries: np.ndarray, ef: int) -> np.ndarray:
        if isinstance(index, faiss.IndexIVF):
            index.nprobe = ef
            return index.search(queries, K)[1]
        return index.search(queries, K, params=faiss.SearchParametersHNSW(efSearch=ef))[1]

    return nearest


def build_usearch(vectors: np.ndarray, folder: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=DIMENSION, metric="cos", dtype="i8", connectivity=16, expansion_add=200)
    index.add(np.arange(len(vectors)), int8_codes(vectors), threads=THREADS)
    index.save(str(folder / "index"))


def open_usearch(folder: Path) -> Callable[[np.ndarray, int], np.ndarray]:
    from usearch.index import Index

    index = Index.restore(str(folder / "index"), view=True)

    def nearest(queries: np.ndarray, ef: int) -> np.ndarray:
        index.expansion_search = ef
        return index.search(int8_codes(queries), K, threads=THREADS).keys.astype(np.int64)

    return nearest


SYSTEMS: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    "songray, 32 bits (hnswlib)": (build_songray(quantised=False), open_songray),
    "songray, 8 bits": (build_songray(quantised=True), open_songray),
    "faiss HNSW16,SQ8": (build_faiss("HNSW16_SQ8"), open_faiss),
    "faiss IVF4096,SQ8": (build_faiss("IVF4096,SQ8"), open_faiss),
    "faiss IVF4096,PQ32x8": (build_faiss("IVF4096,PQ32x8"), open_faiss),
    "usearch, i8, mapped": (build_usearch, open_usearch),
}


def measure_build(name: str, folder: Path, results: Any) -> None:
    """Worker process: build an index and store it; seconds and bytes of its files."""
    vectors = clustered(TRACKS, 1, DIMENSION, CLUSTERS)
    started = time.perf_counter()
    SYSTEMS[name][0](vectors, folder)
    seconds = time.perf_counter() - started
    results.put((seconds, sum(file.stat().st_size for file in folder.iterdir())))


def measure_search(name: str, folder: Path, results: Any) -> None:
    """Worker process: open an index and search it; bytes that it takes for itself, ef, recall, queries/s."""
    queries, least = clustered(QUERIES, 2, DIMENSION, CLUSTERS), np.load(folder.parent / "least.npy")
    halves = np.load(folder.parent / "halves.npy", mmap_mode="r")
    before = anonymous_bytes()
    nearest = SYSTEMS[name][1](folder)
    for ef in EFS:
        labels = nearest(queries, ef)
        cosines = np.einsum("qd,qkd->qk", queries, halves[labels].astype(np.float32))
        recall = float((cosines >= least[:, None] - 2e-4).mean())
        if recall >= RECALL:
            break
    memory = anonymous_bytes() - before
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        nearest(queries, ef)
        rates.append(QUERIES / (time.perf_counter() - started))
    results.put((memory, ef, recall, max(rates)))


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def in_process(worker: Callable[..., None], name: str, folder: Path) -> tuple[Any, ...]:
    """What a worker puts into its queue; a process for each, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=worker, args=(name, folder, results))
    process.start()
    values: tuple[Any, ...] = results.get(timeout=7200)
    process.join()
    return values


def test_quantised_search(tmp_path: Path) -> None:
    vectors, queries = clustered(TRACKS, 1, DIMENSION, CLUSTERS), clustered(QUERIES, 2, DIMENSION, CLUSTERS)
    faiss.omp_set_num_threads(THREADS)
    exact = faiss.IndexFlatIP(DIMENSION)
    exact.add(vectors)
    np.save(tmp_path / "least.npy", exact.search(queries, K)[0][:, -1])
    np.save(tmp_path / "halves.npy", vectors.astype(np.float16))
    del vectors, exact
    table = []
    for name in SYSTEMS:
        if name.startswith("usearch") and importlib.util.find_spec("usearch") is None:
            continue
        folder = tmp_path / name
        folder.mkdir()
        built = Built(*in_process(measure_build, name, folder))
        searched = Searched(*in_process(measure_search, name, folder))
        a_track = built.file_bytes / TRACKS
        table.append(
            [name, built.seconds, a_track, searched.private_bytes / TRACKS, a_track / 10,
             searched.ef, searched.recall, searched.queries_a_second]
        )  # fmt: skip
        print(name, *table[-1][1:], flush=True)
        shutil.rmtree(folder)
    heads = ["", "build (s)", "bytes a track", "of its own", "100 M by these bytes (GB)", "ef or probes"]
    heads += [f"recall@{K}", "queries/s"]
    print(f"\n{TRACKS} × {DIMENSION}, M 16, ef_construction 200, {THREADS} threads\n")
    print(tabulate(table, heads, "github", floatfmt=("", ".0f", ".0f", ".0f", ".1f", ".0f", ".4f", ".0f")))
