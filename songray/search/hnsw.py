"""hnswlib graphs of unit vectors: how they are linked, and how well they find. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hnswlib
import numpy as np

from songray.library import Vectors

K = 10  # neighbours that a search shall find
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LINKS = (8, 12, 16, 24, 32, 48)
TUNING_EF = 64
QUERIES = 256  # that recall is measured with: at most a tenth of the vectors


class Linked(NamedTuple):
    graph: hnswlib.Index
    ef: int  # hnswlib's: the candidates that a search keeps
    recall: float  # at that ef


def link(
    vectors: Vectors,
    parameters: dict[str, int],
    target: float,
    before: tuple[Path, Vectors] | None = None,
    efs: Sequence[int] = EFS,
    threads: int = -1,
) -> Linked:
    """A graph of the vectors, (tracks, dimension), labelled by row, or one from a file and with its vectors,
    to which they are added; and the least ef that reaches the recall, else the largest.

    `parameters` are hnswlib's M and ef_construction. The last vectors, whose order should mean nothing, are
    linked after they were searched for: what they are to the graph then, a listener's own song is."""
    graph = hnswlib.Index(space="cosine", dim=vectors.shape[1])
    known = before[1] if before else vectors[:0]
    count = len(known) + len(vectors)
    if before:
        graph.load_index(str(before[0]), max_elements=count)
    else:
        graph.init_index(max_elements=count, random_seed=0, **parameters)
    early, late = np.split(vectors, [len(vectors) - min(QUERIES, len(vectors) // 10)])
    labels = np.arange(len(known), count)
    graph.add_items(early, labels[: len(early)], num_threads=threads)
    linked = np.concatenate([known, early]) if before else early
    ef, recall = measured(graph, linked, late, target, efs)
    if len(late):
        graph.add_items(late, labels[len(early) :], num_threads=threads)
    return Linked(graph, ef, recall)


def measured(
    graph: hnswlib.Index, vectors: Vectors, queries: Vectors, target: float, efs: Sequence[int]
) -> tuple[int, float]:
    """The least ef at which the graph of these vectors finds the target's share of the 10 nearest to each
    query, against comparing all, else the largest; and that share. Equals count as found."""
    if not len(queries):
        return efs[0], 1.0  # of fewer than ten vectors, none is missed
    k = min(K, len(vectors))
    least = np.partition(queries @ vectors.T, -k, axis=1)[:, -k] - 1e-6
    for ef in efs:
        graph.set_ef(ef)
        _, distances = graph.knn_query(queries, k=k)
        recall = float((1 - distances >= least[:, None]).mean())
        if recall >= target:
            break
    return ef, recall


def tune(vectors: Vectors, ef_construction: int, target: float) -> int:
    """The fewest links a vector (hnswlib's M) with which ef 64 reaches the recall among these vectors."""
    for links in LINKS:
        parameters = {"M": links, "ef_construction": ef_construction}
        if link(vectors, parameters, target, efs=(TUNING_EF,)).recall >= target:
            break
    return links
