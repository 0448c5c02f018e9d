"""HNSW graphs of unit vectors, whose labels are row numbers: in float32 by hnswlib, in 8 bits by faiss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import hnswlib
import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors
from songray.search.halves import normalise

Labels = NDArray[np.int64]
Neighbours = tuple[Labels, Vectors]  # labels and cosines, both (queries, k)

FLOAT_FILE, QUANTISED_FILE = "graph.hnsw", "graph.faiss"
RERANKED = 2  # candidates a neighbour whose cosines are computed anew after a quantised search, and SPARE
SPARE = 10  # further candidates of a search by rounded vectors, since rounding may exchange neighbours


class Graph(Protocol):
    """A graph in this process. Threads may search it at the same time."""

    def __len__(self) -> int: ...

    def add(self, vectors: Vectors, threads: int) -> None:
        """Add vectors, (tracks, dimension); `threads` -1 is one a core."""

    def save(self, folder: Path) -> None: ...

    def nearest(self, queries: Vectors, k: int, ef: int) -> Neighbours | None:
        """The k nearest to each query by the graph's own precision, nearest first; None where it returns
        fewer. `ef` is the number of candidates that a search keeps."""


class FloatGraph:
    """hnswlib's graph of float32 vectors, in the memory of this process."""

    def __init__(self, graph: hnswlib.Index) -> None:
        self._graph = graph

    @classmethod
    def new(cls, dimension: int, parameters: dict[str, int], capacity: int) -> FloatGraph:
        graph = hnswlib.Index(space="cosine", dim=dimension)
        graph.init_index(max_elements=capacity, random_seed=0, **parameters)
        return cls(graph)

    @classmethod
    def open(cls, path: Path, dimension: int, deleted: Sequence[int] = (), capacity: int = 0) -> FloatGraph:
        graph = hnswlib.Index(space="cosine", dim=dimension)
        graph.load_index(str(path), max_elements=capacity)
        for label in deleted:
            graph.mark_deleted(label)
        return cls(graph)

    def __len__(self) -> int:
        return int(self._graph.get_current_count())

    def add(self, vectors: Vectors, threads: int) -> None:
        self._graph.add_items(vectors, np.arange(len(self), len(self) + len(vectors)), num_threads=threads)

    def save(self, folder: Path) -> None:
        self._graph.save_index(str(folder / FLOAT_FILE))

    def nearest(self, queries: Vectors, k: int, ef: int) -> Neighbours | None:
        if self._graph.ef != ef:
            self._graph.set_ef(ef)
        try:
            labels, distances = self._graph.knn_query(queries, k=k)
        except RuntimeError:  # how hnswlib reports that it has fewer
            return None
        return labels.astype(np.int64), np.subtract(1, distances, out=distances)


class QuantisedGraph:
    """faiss's graph of vectors in 8 bits a number, between the least and the largest value that each had
    among the first vectors; an opened one is mapped from its file."""

    def __init__(self, graph: Any, deleted: Sequence[int] = ()) -> None:  # a faiss.IndexHNSWSQ
        self._graph, self._filter = graph, {}
        if len(deleted):
            import faiss

            live = np.ones(graph.ntotal, bool)
            live[list(deleted)] = False
            selector = faiss.IDSelectorBitmap(np.packbits(live, bitorder="little"))
            self._filter = {"sel": selector}

    @classmethod
    def new(cls, dimension: int, parameters: dict[str, int], sample: Vectors) -> QuantisedGraph:
        """An empty graph whose range of values is that of a sample, (vectors, dimension)."""
        import faiss

        kind = faiss.ScalarQuantizer.QT_8bit
        graph = faiss.IndexHNSWSQ(dimension, kind, parameters["M"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = parameters["ef_construction"]
        graph.train(sample)
        return cls(graph)

    @classmethod
    def open(cls, path: Path, deleted: Sequence[int] = (), grows: bool = False) -> QuantisedGraph:
        """Opened to grow, the graph is read into memory."""
        import faiss

        return cls(faiss.read_index(str(path), 0 if grows else faiss.IO_FLAG_MMAP_IFC), deleted)

    def __len__(self) -> int:
        return int(self._graph.ntotal)

    def add(self, vectors: Vectors, threads: int) -> None:
        import faiss

        if threads > 0:
            faiss.omp_set_num_threads(threads)
        self._graph.add(np.ascontiguousarray(vectors))

    def save(self, folder: Path) -> None:
        import faiss

        faiss.write_index(self._graph, str(folder / QUANTISED_FILE))

    def nearest(self, queries: Vectors, k: int, ef: int) -> Neighbours | None:
        import faiss

        ef = max(ef, k)  # as hnswlib does: faiss ends a search after ef candidates, also where k is larger
        options = faiss.SearchParametersHNSW(efSearch=ef, **self._filter)
        cosines, labels = self._graph.search(np.ascontiguousarray(queries, np.float32), k, params=options)
        return None if (labels < 0).any() else (labels, cosines)


def open_graph(folder: Path, dimension: int, deleted: Sequence[int] = ()) -> Graph:
    """The graph of a shard, for reading; `deleted` are labels that no search returns."""
    if (folder / QUANTISED_FILE).exists():
        return QuantisedGraph.open(folder / QUANTISED_FILE, deleted)
    return FloatGraph.open(folder / FLOAT_FILE, dimension, deleted)


def search(
    graph: Graph, vectors: Callable[[Labels], Vectors], queries: Vectors, k: int, ef: int
) -> Neighbours | None:
    """As Graph.nearest, by true cosines: what a quantised graph returns is ranked again by the vectors of
    some labels, (labels, dimension), of length 1."""
    if not isinstance(graph, QuantisedGraph):
        return graph.nearest(queries, k, ef)
    reranked = min(RERANKED * k + SPARE, len(graph))
    nearest = graph.nearest(queries, reranked, ef) or graph.nearest(queries, k, ef)
    if nearest is None:
        return None
    labels = nearest[0]
    candidates = vectors(labels.ravel()).reshape(*labels.shape, -1)
    cosines = np.einsum("qd,qkd->qk", normalise(queries), candidates, dtype=np.float32)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(labels, order, axis=1), np.take_along_axis(cosines, order, axis=1)
