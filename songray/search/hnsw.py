"""Builds HNSW graphs of unit vectors, measures their recall, and tunes M."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from songray.library import Vectors
from songray.search.graphs import (
    FLOAT_FILE,
    QUANTISED_FILE,
    FloatGraph,
    Graph,
    QuantisedGraph,
    search,
)

K = 10  # neighbours a query over which recall is measured
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
M_VALUES = (8, 12, 16, 24, 32, 48)
TUNING_EF = 64
RECALL_QUERIES = 256  # at most, and at most a tenth of the vectors
RANGE_VECTORS = 10_000  # from which the range of values of a quantised graph holds those of later vectors


@dataclass(frozen=True)
class GraphOptions:
    parameters: dict[str, int]  # HNSW's M and ef_construction
    recall_target: float
    threads: int = -1  # -1: one a core
    quantised: bool = False  # 8 bits a number, by faiss, instead of float32, by hnswlib


class BuiltGraph(NamedTuple):
    graph: Graph
    ef: int  # HNSW's ef, the candidates that a search keeps
    recall: float  # recall@10 at that ef


def build_graph(
    vectors: Vectors,
    options: GraphOptions,
    before: tuple[Path, Vectors] | None = None,
    efs: Sequence[int] = EFS,
) -> BuiltGraph:
    """Build a graph of vectors, (tracks, dimension), whose labels are row numbers.

    With `before`, the folder of a graph and its vectors, they are added to that graph. Recall is measured
    with the last vectors as queries, before they are added: like an uploaded song, they are not in the graph.
    The order of the vectors must not depend on their content.
    """
    existing = before[1] if before else vectors[:0]
    graph = grown_graph(vectors, options, before)
    added, queries = np.split(vectors, [len(vectors) - min(RECALL_QUERIES, len(vectors) // 10)])
    graph.add(added, options.threads)
    searched = np.concatenate([existing, added]) if before else added
    ef, recall = measure_recall(graph, searched, queries, options.recall_target, efs)
    if len(queries):
        graph.add(queries, options.threads)
    return BuiltGraph(graph, ef, recall)


def grown_graph(vectors: Vectors, options: GraphOptions, before: tuple[Path, Vectors] | None) -> Graph:
    """The graph to which these vectors are to be added: an empty one, or that of a folder and its vectors."""
    folder, existing = before or (None, vectors[:0])
    if not options.quantised:
        count, dimension = len(existing) + len(vectors), vectors.shape[1]
        if folder is None:
            return FloatGraph.new(dimension, options.parameters, count)
        return FloatGraph.open(folder / FLOAT_FILE, dimension, capacity=count)
    if folder is not None and len(existing) >= RANGE_VECTORS:
        return QuantisedGraph.open(folder / QUANTISED_FILE, grows=True)
    # The range of values of few vectors does not hold those of others: it is that of all of them.
    graph = QuantisedGraph.new(vectors.shape[1], options.parameters, np.concatenate([existing, vectors]))
    if len(existing):
        graph.add(existing, options.threads)
    return graph


def measure_recall(
    graph: Graph, vectors: Vectors, queries: Vectors, target: float, efs: Sequence[int]
) -> tuple[int, float]:
    """The smallest ef whose recall reaches the target, else the largest, and the recall at it.

    Recall is the share of the 10 nearest vectors of each query, by exact search, that a search returns;
    vectors at the same distance count as the same.
    """
    if not len(queries):
        return efs[0], 1.0  # fewer than ten vectors: any search returns all of them
    k = min(K, len(vectors))
    least_cosine = np.partition(queries @ vectors.T, -k, axis=1)[:, -k] - 1e-6
    for ef in efs:
        nearest = search(graph, vectors.__getitem__, queries, k, ef)
        recall = 0.0 if nearest is None else float((nearest[1] >= least_cosine[:, None]).mean())
        if recall >= target:
            break
    return ef, recall


def tune_m(vectors: Vectors, ef_construction: int, recall_target: float, quantised: bool = False) -> int:
    """The smallest M whose graph of these vectors reaches the recall at ef 64, else the largest."""
    for m in M_VALUES:
        parameters = {"M": m, "ef_construction": ef_construction}
        options = GraphOptions(parameters, recall_target, quantised=quantised)
        if build_graph(vectors, options, efs=(TUNING_EF,)).recall >= recall_target:
            break
    return m
