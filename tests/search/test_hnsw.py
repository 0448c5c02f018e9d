"""Graphs beside exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from constructed import OPTIONS, units

from songray.search.hnsw import M_VALUES, GraphOptions, build_graph, measure_recall, tune_m


def exact_recall(graph: object, vectors: np.ndarray, queries: np.ndarray) -> float:
    labels, _ = graph.knn_query(queries, k=10)  # type: ignore[attr-defined]
    nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    pairs = zip(labels, nearest, strict=True)
    return float(np.mean([len(set(row) & set(truth)) / 10 for row, truth in pairs]))


@pytest.mark.parametrize("ef", [16, 128])
def test_measured_recall_is_that_of_exact_search(ef: int) -> None:
    vectors, queries = units(3000, dimension=32), units(200, dimension=32, seed=1)
    graph = build_graph(vectors, GraphOptions({"M": 4, "ef_construction": 20}, recall_target=0.5)).graph
    measured_ef, recall = measure_recall(graph, vectors, queries, 1.0, (ef,))
    assert measured_ef == ef and recall == pytest.approx(exact_recall(graph, vectors, queries), abs=1e-9)


def test_ef_is_the_smallest_that_reaches_the_target() -> None:
    vectors, queries = units(3000, dimension=32), units(200, dimension=32, seed=1)
    graph = build_graph(vectors, GraphOptions({"M": 4, "ef_construction": 20}, recall_target=0.5)).graph
    recalls = [measure_recall(graph, vectors, queries, 1.0, (ef,))[1] for ef in (16, 64, 256)]
    assert recalls == sorted(recalls)
    assert measure_recall(graph, vectors, queries, recalls[1], (16, 64, 256)) == (64, recalls[1])
    assert measure_recall(graph, vectors, queries, 1.1, (16, 64, 256)) == (256, recalls[2])


def test_a_graph_from_a_file_grows(tmp_path: Path) -> None:
    vectors = units(500)
    build_graph(vectors[:300], OPTIONS).graph.save_index(str(tmp_path / "graph"))
    grown = build_graph(vectors[300:], OPTIONS, before=(tmp_path / "graph", vectors[:300]))
    assert grown.recall >= OPTIONS.recall_target
    assert exact_recall(grown.graph, vectors, units(50, seed=1)) > 0.95


def test_fewer_than_ten_vectors_need_no_queries() -> None:
    graph, _, recall = build_graph(units(5), OPTIONS)
    assert (graph.get_current_count(), recall) == (5, 1.0)


def test_a_higher_recall_takes_more_links() -> None:
    vectors = units(3000, dimension=32)
    low, high = (tune_m(vectors, 100, recall) for recall in (0.5, 0.99))
    assert low == M_VALUES[0] < high
