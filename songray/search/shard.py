"""One shard of an index, opened for reading from a local folder of these files:

graph.hnsw      HNSW graph (songray/search/graphs.py), or graph.faiss where it is quantised; a label is a row
                number of the other files
vectors.npy     float16, (tracks, dimension), length 1; mapped: vectors of seeds, and exact search
tracks.arrow    rows (songray/search/rows.py)
names.sqlite    text search (songray/search/text.py)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.keys import MAX_PROBES, NUMBERS, REVISION_BITS, track_number
from songray.library import Row, Vectors
from songray.search import text
from songray.search.attributes import (
    CATEGORICAL,
    NUMERIC,
    categories,
    numbers,
    strongest_tags,
    tag_probabilities,
)
from songray.search.candidates import CANDIDATE, POINT, Box, Candidates, Points, by_cosine
from songray.search.filters import CACHED_CHARACTERS, CACHED_FILTERS, EVERYTHING, Filters
from songray.search.graphs import SPARE, Labels, open_graph, search
from songray.search.halves import normalise, to_float32, unit_vectors
from songray.search.hnsw import K
from songray.search.rows import COMPUTED, SHOWN, read_rows, tag_levels
from songray.search.tags import Tags
from songray.search.version import TEXT, VECTORS

OF_CANDIDATES = [name for name in COMPUTED if name in (CANDIDATE.names or ())]
FACET_COLUMNS = {
    "genres": ("genres",),
    "artists": ("artist_ids", "artist_names"),
    "albums": ("album_id", "album"),
    "sources": ("source",),
}
NO_TAGS = Tags()
EXACT_ROWS = 12  # whose cosines take as long as one more neighbour in the graph
GRAPH_MARGIN = 1.5  # neighbours requested from the graph, relative to the mean that a filter needs
ROWS_AT_ONCE = 1 << 13  # whose vectors fit in the processor's cache


class Shard:
    """A shard, read-only. Threads may share it."""

    def __init__(
        self, folder: Path, deleted: Sequence[int] = (), number: int = 0, tags: Tags = NO_TAGS
    ) -> None:
        """`deleted` are labels; `number` is that of the shard in its version, which candidates contain."""
        self.number, self.tags = number, tags
        self._tracks = read_rows(folder)
        self._levels = tag_levels(self._tracks, len(tags.labels))
        self._vectors = np.load(folder / VECTORS, mmap_mode="r")
        self._graph = open_graph(folder, self._vectors.shape[1], deleted)
        self._text = text.TextIndex(folder / TEXT)
        self._live = np.ones(self._tracks.num_rows, bool)
        self._live[list(deleted)] = False
        self._column = {name: self._tracks[f"_{name}"].to_numpy() for name in COMPUTED}
        self._keys = self._tracks["track_key"].to_numpy()
        by_number = np.argsort(self._keys, kind="stable").astype(np.int32)  # hashes: a random order
        self._by_number = by_number[self._live[by_number]]
        self._match_once = lru_cache(maxsize=CACHED_FILTERS)(self._match)

    def __len__(self) -> int:
        """Live tracks."""
        return len(self._by_number)

    def find(self, track_ids: Sequence[str]) -> dict[str, int]:
        """Labels of the ids that the shard contains."""
        labels = {}
        for track_id in track_ids:
            first = track_number(track_id)
            probes = (first, first + MAX_PROBES, first + MAX_PROBES - NUMBERS)  # modulo NUMBERS
            start, end, wrapped = (bisect_left(self._by_number, n, key=self._number) for n in probes)
            for label in (*self._by_number[start:end].tolist(), *self._by_number[:wrapped].tolist()):
                if self._tracks["track_id"][label].as_py() == track_id:
                    labels[track_id] = label
        return labels

    def _number(self, label: int) -> int:
        return int(self._keys[label]) >> REVISION_BITS

    def candidates(self, labels: Sequence[int] | Labels) -> Candidates:
        """Candidates without a cosine, in the shape of the labels."""
        labels = np.asarray(labels, np.int64)
        candidates = np.zeros(labels.shape, CANDIDATE)
        candidates["shard"], candidates["label"] = self.number, labels
        for name in OF_CANDIDATES:
            candidates[name] = self._column[name].take(labels)
        return candidates

    def vectors(self, labels: Sequence[int] | Labels) -> Vectors:
        """(labels, dimension), of length 1."""
        return unit_vectors(self._vectors[np.asarray(labels, np.int64)])

    def nearest(
        self, queries: Vectors, k: int, filters: Filters = EVERYTHING, ef: int = 64
    ) -> list[Candidates]:
        """For each query, (queries, dimension), the k nearest live tracks that match, or all where fewer do:
        by descending cosine, then label. `ef` is HNSW's, the candidates that its search keeps."""
        mask = self._live if filters == EVERYTHING else self._mask(filters)
        live, matching = len(self), len(self) if filters == EVERYTHING else int(np.count_nonzero(mask))
        k = min(k, matching)
        if not k:
            return [self.candidates([])] * len(queries)
        depth = k
        if matching < live:
            depth = int(np.ceil(GRAPH_MARGIN * k * live / matching))
            if matching <= EXACT_ROWS * max(depth, ef):
                return self._exact(queries, k, mask)
        candidates = self._search_graph(queries, depth, ef)
        if candidates is None:
            return self._exact(queries, k, mask)
        if matching == live:
            return list(candidates if candidates.shape[1] == k else candidates[:, :k])
        matches = [row[mask[row["label"]]][:k] for row in candidates]
        return [
            row if len(row) == k else self._exact(query[None], k, mask)[0]
            for row, query in zip(matches, queries, strict=True)
        ]

    def described(self, weights: dict[str, float], k: int, filters: Filters = EVERYTHING) -> Candidates:
        """The k live tracks that match and whose tags fit best, best first: Tags.score takes the place of the
        cosine. Tracks whose tags are unknown are left out."""
        mask = self._live if filters == EVERYTHING else self._mask(filters)
        scores = self.tags.score(self._levels, weights)
        labels = np.flatnonzero(mask & ~np.isnan(scores))
        if len(labels) > k:  # sort only the best, and all that equal the last of them
            labels = labels[scores[labels] >= np.partition(scores[labels], -k)[-k]]
        candidates = self.candidates(labels)
        candidates["cosine"] = scores[labels]
        return by_cosine([candidates], k)

    def _search_graph(self, queries: Vectors, depth: int, ef: int) -> Candidates | None:
        """At least `depth` candidates for each query, (queries, candidates), nearest first; None where the
        graph returns fewer."""
        k = depth if depth <= max(K, ef // 2) else min(2 * depth, len(self))  # HNSW's ef is at least its k
        nearest = search(self._graph, self.vectors, queries, k, ef)
        if nearest is None:
            return None
        labels, cosines = nearest
        candidates = self.candidates(labels)
        candidates["cosine"] = cosines
        if (cosines[:, 1:] == cosines[:, :-1]).any():
            order = np.lexsort((labels, -cosines), axis=-1)
            candidates = np.take_along_axis(candidates, order, axis=1)
        return candidates

    def _exact(self, queries: Vectors, k: int, mask: NDArray[np.bool_]) -> list[Candidates]:
        """The k nearest to each query among the tracks of a mask, by comparing all."""
        units = normalise(queries)
        labels = np.flatnonzero(mask)
        parts = [labels[start : start + ROWS_AT_ONCE] for start in range(0, len(labels), ROWS_AT_ONCE)]
        tops = [_top(units @ to_float32(self._vectors[part]).T, part, k + SPARE) for part in parts]
        cosines, top_labels = (np.concatenate(side, axis=1) for side in zip(*tops, strict=True))
        nearest = []
        for query, chosen in zip(units, _top(cosines, top_labels, k + SPARE)[1], strict=True):
            candidates = self.candidates(chosen)
            candidates["cosine"] = self.vectors(chosen) @ query
            nearest.append(by_cosine([candidates], k))
        return nearest

    def _mask(self, filters: Filters) -> NDArray[np.bool_]:
        """A mask of the live tracks that match. What track ids select is not kept, nor are long filters."""
        shared = filters.without_tracks()
        mask = self._live
        if shared != EVERYTHING:
            match = self._match_once if len(repr(shared)) <= CACHED_CHARACTERS else self._match
            mask = np.unpackbits(match(shared), count=len(mask)).view(bool)
        if filters.include.tracks:
            mask = mask & self._has("tracks", filters.include.tracks)
        if filters.exclude.tracks:
            mask = mask & ~self._has("tracks", filters.exclude.tracks)
        return mask

    def _match(self, filters: Filters) -> NDArray[np.uint8]:
        """A mask of the live tracks that match, one bit each."""
        mask = self._live.copy()
        for facet in FACET_COLUMNS:
            if included := getattr(filters.include, facet):
                mask &= self._has(facet, included)
            if excluded := getattr(filters.exclude, facet):
                mask &= ~self._has(facet, excluded)
        if filters.include.tags:
            mask &= self.tags.has(self._levels, filters.include.tags).all(axis=1)
        if filters.exclude.tags:
            mask &= ~self.tags.has(self._levels, filters.exclude.tags).any(axis=1)
        bounds = {"year": filters.years, "duration": filters.duration_seconds}
        for name, (least, most) in bounds.items():
            column = self._column[name]
            if least is not None:
                mask &= column >= least
            if most is not None:
                mask &= (column <= most) & (column > 0)
        if filters.explicit is not None:
            explicit = pa.compute.fill_null(self._tracks["explicit"], False).to_numpy(zero_copy_only=False)
            mask &= explicit == filters.explicit
        return np.packbits(mask)

    def _has(self, facet: str, values: tuple[str, ...]) -> NDArray[np.bool_]:
        """A mask of the tracks that have any of the values."""
        mask = np.zeros(len(self._live), bool)
        if facet == "tracks":
            mask[list(self.find(values).values())] = True
            return mask
        for name in FACET_COLUMNS[facet]:
            column, included = self._tracks[name], pa.array(values, pa.string())
            is_list = pa.types.is_list(column.type)
            flat = pa.compute.list_flatten(column) if is_list else column
            if not name.endswith(("_id", "_ids")):
                flat, included = pa.compute.utf8_lower(flat), pa.compute.utf8_lower(included)
            equal = pa.compute.is_in(flat, included).to_numpy(zero_copy_only=False)
            mask[pa.compute.list_parent_indices(column).to_numpy()[equal] if is_list else equal] = True
        return mask

    def rows(self, labels: Sequence[int] | Labels) -> list[Row]:
        """The columns of SHOWN, and `tags`: see Tags.shown."""
        positions = np.asarray(labels, np.int64)
        taken = self._tracks.select(list(SHOWN)).take(pa.array(positions))
        tags = self.tags.shown(self._levels[positions])
        return [row | {"tags": shown} for row, shown in zip(taken.to_pylist(), tags, strict=True)]

    def points(self, bbox: Box | None, limit: int) -> Points:
        """A sample of the points of the map in a box, by ascending sample rank: a smaller box contains all
        points that a larger one shows there."""
        labels = self._by_number
        if bbox is not None:
            x, y = self._column["x"][labels], self._column["y"][labels]
            left, bottom, right, top = bbox
            inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
            labels = labels[inside]
        labels = labels[:limit]
        ranks = self._keys[labels] >> REVISION_BITS
        points = np.empty(len(labels), POINT)
        points["shard"], points["label"], points["sample_rank"] = self.number, labels, ranks
        points["x"], points["y"] = self._column["x"][labels], self._column["y"][labels]
        return points

    def attribute(self, labels: Labels, name: str, query: Vectors | None = None) -> NDArray[Any]:
        """An attribute of tracks, (labels,): see songray/search/attributes.py; the cosine of a query,
        (dimension,), where there is one."""
        if query is not None:
            return self.vectors(labels) @ query
        if name in NUMERIC:
            return numbers(self._tracks, labels, name)
        if name == "tag":
            return strongest_tags(self.tags, self._levels[labels])
        if name in CATEGORICAL:
            return categories(self._tracks, labels, name)
        return tag_probabilities(self.tags, self._levels[labels], name)

    def search(self, query: str, limit: int) -> list[tuple[int, float]]:
        """Labels and scores, 0…1, of the tracks whose title, artists and album match a text, best first; a
        random sample of all tracks where the text has no words."""
        if not text.words(query):
            return [(int(label), 1.0) for label in self._by_number[:limit]]
        return self._text.search(query, limit, self._live)


def _top(cosines: Vectors, labels: Labels, k: int) -> tuple[Vectors, Labels]:
    """The k largest cosines of each row, unordered, and their labels: both (queries, k)."""
    labels = np.broadcast_to(labels, cosines.shape)
    if cosines.shape[1] <= k:
        return cosines, labels
    chosen = np.argpartition(cosines, -k, axis=1)[:, -k:]
    return np.take_along_axis(cosines, chosen, axis=1), np.take_along_axis(labels, chosen, axis=1)
