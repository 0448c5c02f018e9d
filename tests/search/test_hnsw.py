"""Graphs beside exact search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from constructed import OPTIONS, units

from songray.search.graphs import Graph, search
from songray.search.hnsw import M_VALUES, GraphOptions, build_graph, measure_recall, tune_m


def exact_recall(graph: Graph, vectors: np.ndarray, queries: np.ndarray, ef: int) -> float:
    nearest = search(graph, vectors.__getitem__, queries, 10, ef)
    assert nearest is not None
    truths = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    pairs = zip(nearest[0].tolist(), truths.tolist(), strict=True)
    return float(np.mean([len(set(row) & set(truth)) / 10 for row, truth in pairs]))


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("ef", [16, 128])
def test_measured_recall_is_that_of_exact_search(ef: int, quantised: bool) -> None:
    vectors, queries = units(3000, dimension=32), units(200, dimension=32, seed=1)
    graph = build_graph(
        vectors, GraphOptions({"M": 4, "ef_construction": 20}, 0.5, quantised=quantised)
    ).graph
    measured_ef, recall = measure_recall(graph, vectors, queries, 1.0, (ef,))
    assert measured_ef == ef and recall == pytest.approx(exact_recall(graph, vectors, queries, ef), abs=1e-9)


def test_ef_is_the_smallest_that_reaches_the_target() -> None:
    vectors, queries = units(3000, dimension=32), units(200, dimension=32, seed=1)
    graph = build_graph(vectors, GraphOptions({"M": 4, "ef_construction": 20}, recall_target=0.5)).graph
    recalls = [measure_recall(graph, vectors, queries, 1.0, (ef,))[1] for ef in (16, 64, 256)]
    assert recalls == sorted(recalls)
    assert measure_recall(graph, vectors, queries, recalls[1], (16, 64, 256)) == (64, recalls[1])
    assert measure_recall(graph, vectors, queries, 1.1, (16, 64, 256)) == (256, recalls[2])


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, quantised=True)])
def test_a_graph_from_a_file_grows(tmp_path: Path, options: GraphOptions) -> None:
    vectors = units(500)
    build_graph(vectors[:300], options).graph.save(tmp_path)
    grown = build_graph(vectors[300:], options, before=(tmp_path, vectors[:300]))
    assert grown.recall >= options.recall_target
    assert exact_recall(grown.graph, vectors, units(50, seed=1), grown.ef) > 0.95


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, quantised=True)])
def test_fewer_than_ten_vectors_need_no_queries(options: GraphOptions) -> None:
    graph, _, recall = build_graph(units(5), options)
    assert (len(graph), recall) == (5, 1.0)


def test_a_quantised_search_ranks_by_true_cosines() -> None:
    """Vectors that are equal in eight bits, since two that are far away determine the range."""
    near = np.array([[1, step / 1000] for step in range(25)], np.float32)
    vectors = np.concatenate([near, [[-1, 0], [0, -1], [0, 1]]]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    graph = build_graph(vectors, replace(OPTIONS, quantised=True)).graph
    rounded = graph.nearest(vectors[:1], 10, 64)
    ranked = search(graph, vectors.__getitem__, vectors[:1], 10, 64)
    assert rounded is not None and ranked is not None
    assert ranked[0][0].tolist() == list(range(10)) != rounded[0][0].tolist()
    assert ranked[1][0] == pytest.approx(vectors[:10] @ vectors[0], abs=1e-6)


def test_a_higher_recall_takes_more_links() -> None:
    vectors = units(3000, dimension=32)
    low, high = (tune_m(vectors, 100, recall) for recall in (0.5, 0.99))
    assert low == M_VALUES[0] < high


@pytest.mark.parametrize("quantised", [False, True])
def test_ef_is_at_least_the_number_of_neighbours(quantised: bool) -> None:
    vectors, queries = units(3000, dimension=8), units(50, dimension=8, seed=1)
    graph = build_graph(vectors, replace(OPTIONS, quantised=quantised)).graph
    nearest = search(graph, vectors.__getitem__, queries, 200, ef=4)
    assert nearest is not None
    least = np.sort(queries @ vectors.T, axis=1)[:, -200]
    assert (nearest[1] >= least[:, None] - 1e-5).mean() > 0.95
