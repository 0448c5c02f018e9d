"""hnswlib graphs of unit vectors: build, measure recall, tune M."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import hnswlib
import numpy as np

from songray.library import Vectors

K = 10  # neighbours a query over which recall is measured
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
M_VALUES = (8, 12, 16, 24, 32, 48)
TUNING_EF = 64
RECALL_QUERIES = 256  # at most, and at most a tenth of the vectors


@dataclass(frozen=True)
class GraphOptions:
    parameters: dict[str, int]  # hnswlib's M and ef_construction
    recall_target: float
    threads: int = -1  # -1: one a core


class BuiltGraph(NamedTuple):
    graph: hnswlib.Index
    ef: int  # hnswlib's ef, the candidates that a search keeps
    recall: float  # recall@10 at that ef


def build_graph(
    vectors: Vectors,
    options: GraphOptions,
    before: tuple[Path, Vectors] | None = None,
    efs: Sequence[int] = EFS,
) -> BuiltGraph:
    """Build a graph of vectors, (tracks, dimension), whose labels are row numbers.

    With `before`, the file of a graph and its vectors, they are added to that graph. Recall is measured with
    the last vectors as queries, before they are added: like an uploaded song, they are not in the graph. The
    order of the vectors must not depend on their content.
    """
    graph = hnswlib.Index(space="cosine", dim=vectors.shape[1])
    existing = before[1] if before else vectors[:0]
    count = len(existing) + len(vectors)
    if before:
        graph.load_index(str(before[0]), max_elements=count)
    else:
        graph.init_index(max_elements=count, random_seed=0, **options.parameters)
    added, queries = np.split(vectors, [len(vectors) - min(RECALL_QUERIES, len(vectors) // 10)])
    labels = np.arange(len(existing), count)
    graph.add_items(added, labels[: len(added)], num_threads=options.threads)
    searched = np.concatenate([existing, added]) if before else added
    ef, recall = measure_recall(graph, searched, queries, options.recall_target, efs)
    if len(queries):
        graph.add_items(queries, labels[len(added) :], num_threads=options.threads)
    return BuiltGraph(graph, ef, recall)


def measure_recall(
    graph: hnswlib.Index, vectors: Vectors, queries: Vectors, target: float, efs: Sequence[int]
) -> tuple[int, float]:
    """The smallest ef whose recall reaches the target, else the largest, and the recall at it.

    Recall is the share of the 10 nearest vectors of each query, by exact search, that the graph returns;
    vectors at the same distance count as the same.
    """
    if not len(queries):
        return efs[0], 1.0  # fewer than ten vectors: any search returns all of them
    k = min(K, len(vectors))
    least_cosine = np.partition(queries @ vectors.T, -k, axis=1)[:, -k] - 1e-6
    for ef in efs:
        graph.set_ef(ef)
        _, distances = graph.knn_query(queries, k=k)
        recall = float((1 - distances >= least_cosine[:, None]).mean())
        if recall >= target:
            break
    return ef, recall


def tune_m(vectors: Vectors, ef_construction: int, recall_target: float) -> int:
    """The smallest M whose graph of these vectors reaches the recall at ef 64, else the largest."""
    for m in M_VALUES:
        options = GraphOptions({"M": m, "ef_construction": ef_construction}, recall_target)
        if build_graph(vectors, options, efs=(TUNING_EF,)).recall >= recall_target:
            break
    return m
