"""One shard of an index, in a folder: vectors to search, and what answers show of their tracks. No Ray.

graph.hnsw      hnswlib, cosine space; a label is a row number of the other files
vectors.npy     float16, (tracks, dimension), length 1; mapped: seeds, and exact search among few
tracks.arrow    Arrow IPC, mapped: what answers show, and the columns that ranking and the map need
names.sqlite    titles, artists and albums by their trigrams (FTS5)
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc
from numpy.typing import NDArray

from songray.library import REVISION_BITS, TABLES, Keys, Vectors, hash64, track_key
from songray.search import text as names
from songray.search.hnsw import K, link
from songray.search.text import Names

GRAPH, VECTORS, TRACKS, NAMES = FILES = ("graph.hnsw", "vectors.npy", "tracks.arrow", "names.sqlite")
INTERNAL = {"track_key", "revision", "crawl", "audio_checksum", "checksum"}
SHOWN = [name for name in TABLES["tracks"].columns if name not in INTERNAL]
NEIGHBOURS = 10  # of a track in the reference, that tell whether it is a hub

CANDIDATE = np.dtype(
    [
        ("shard", "i4"),
        ("label", "i4"),
        ("cosine", "f4"),
        ("hubness", "f4"),  # mean cosine to the nearest of the reference
        ("artist", "i8"),  # hashes, 0 where unknown: of the first artist, …
        ("album", "i8"),
        ("recording", "i8"),  # or the ISRC
        ("title", "i8"),  # without "(remastered)", " - live" and the like
        ("duration", "f4"),  # seconds, or nan
    ]
)
POINT = np.dtype([("shard", "i4"), ("label", "i4"), ("x", "f4"), ("y", "f4"), ("lot", "i8")])
COMPUTED = {"hubness": "f4", "x": "f4", "y": "f4", "artist": "i8", "album": "i8", "recording": "i8",
            "title": "i8", "duration": "f4", "year": "i2"}  # fmt: skip

EXACT_ROWS = 12  # that are compared in the time in which the graph finds one neighbour more
GRAPH_MARGIN = 1.5  # more neighbours than a filter of such selectivity takes on average
ROWS_AT_ONCE = 1 << 13  # whose vectors stay in the processor's cache
SPARE = 10  # more than asked for, as rounding to float16 may swap neighbours

Candidates = NDArray[np.void]  # of CANDIDATE
Points = NDArray[np.void]  # of POINT
Labels = NDArray[np.int64]
Row = dict[str, Any]
Place = tuple[int, int]  # shard, by its number in the manifest, and label


@dataclass(frozen=True)
class Facets:
    """Names of what a track may have; ids as they are stored, all others in capitals or not."""

    genres: tuple[str, ...] = ()
    artists: tuple[str, ...] = ()  # ids or names
    albums: tuple[str, ...] = ()  # ids or names
    sources: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()  # ids


@dataclass(frozen=True)
class Filters:
    """What tracks must fit; empty, all do."""

    include: Facets = field(default_factory=Facets)  # one of each that is named
    exclude: Facets = field(default_factory=Facets)  # none of any
    years: tuple[int | None, int | None] = (None, None)  # from, to; a track of unknown year fits no bound
    duration_seconds: tuple[float | None, float | None] = (None, None)
    explicit: bool | None = None  # False: none that is known to be


EVERYTHING = Filters()


@dataclass(frozen=True)
class Reference:
    """Tracks drawn by lot, to which all others are compared: kept from version to version."""

    tracks: Keys  # without revision
    vectors: Vectors  # (tracks, dimension)

    def hubness(self, tracks: Keys, vectors: Vectors) -> Vectors:
        """Mean cosine of each vector to the nearest in the reference but itself: high for what is near to
        everything (Conneau et al. 2018, Word translation without parallel data: their r)."""
        position = np.minimum(np.searchsorted(self.tracks, tracks), len(self.tracks) - 1)
        itself = self.tracks[position] == tracks
        kept = min(NEIGHBOURS, len(self.tracks) - 1)
        if not kept:
            return np.zeros(len(vectors), np.float32)
        found = []
        for start in range(0, len(vectors), 1024):  # whose cosines stay in the processor's cache
            part = slice(start, start + 1024)
            cosines = vectors[part] @ self.vectors.T
            rows = np.flatnonzero(itself[part])
            cosines[rows, position[part][rows]] = -np.inf
            found.append(np.partition(cosines, -kept, axis=1)[:, -kept:].mean(axis=1))
        return np.concatenate(found)

    def axes(self) -> tuple[Vectors, Vectors]:
        """Mean, (dimension,), and the first two principal directions, (dimension, 2), of the reference."""
        mean = self.vectors.mean(axis=0)
        centred = self.vectors - mean
        _, directions = np.linalg.eigh(centred.T @ centred)  # by rising variance
        axes = directions[:, :-3:-1]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0, keepdims=True), axis=0)
        return mean, axes * np.sign(largest)  # else one sign as good as the other


def write(
    folder: Path,
    vectors: Vectors,
    tracks: pa.Table,
    reference: Reference,
    parameters: dict[str, int],
    target: float,
    before: Path | None = None,
    threads: int = -1,
) -> tuple[int, float]:
    """Write a shard of unit vectors, (tracks, dimension), and their rows: `track_key`, `checksum` and SHOWN;
    after those of the shard `before`, if there is one. The least ef that reaches the target, a recall, and
    the recall at it: see graphs.link, whose `parameters` these are."""
    halves = vectors.astype(np.float16)
    earlier = np.load(before / VECTORS) if before else halves[:0]
    old = (before / GRAPH, unit(earlier)) if before else None
    graph, ef, recall = link(unit(halves), parameters, target, old, threads=threads)
    graph.save_index(str(folder / GRAPH))
    np.save(folder / VECTORS, np.concatenate([earlier, halves]))
    described = describe(tracks, vectors, reference)
    rows = pa.concat_tables([pa.Table.from_batches([_mapped(before)]), described]) if before else described
    with pa.ipc.new_file(folder / TRACKS, rows.schema) as file:
        file.write_table(rows.combine_chunks())
    if before:
        shutil.copy(before / NAMES, folder / NAMES)
    names.write(folder / NAMES, tracks, first=len(earlier))
    return ef, recall


def unit(halves: NDArray[np.float16]) -> Vectors:
    """Stored vectors, (tracks, dimension), as the graph has them too: of length 1 again after rounding."""
    vectors = widened(halves)
    lengths = np.sqrt(np.einsum("td,td->t", vectors, vectors))[:, None]
    units: Vectors = vectors / np.maximum(lengths, 1e-12)
    return units


def widened(halves: NDArray[np.float16]) -> Vectors:
    """As float32, of finite numbers: NumPy's own conversion of a few rows takes several times as long."""
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13  # where float32 has its fraction
    bits &= ~0x70000000  # of what the sign filled, its own bit stays
    vectors: Vectors = bits.view(np.float32)
    vectors *= np.float32(2.0**112)  # exponents count from -127, not from -15
    return vectors


def describe(tracks: pa.Table, vectors: Vectors, reference: Reference) -> pa.Table:
    """The rows with the columns of COMPUTED, each under its name after an underscore."""
    mean, axes = reference.axes()
    x, y = ((vectors - mean) @ axes).T
    texts = ("artist_ids", "artist_names", "album_id", "album", "recording", "isrc", "title", "release_date")
    ids, artists, album_ids, albums, recordings, isrcs, titles, dates = (
        tracks[name].to_pylist() for name in texts
    )
    known = cache(lambda text: hash64(text) if text else 0)
    columns = {
        "hubness": reference.hubness(tracks["track_key"].to_numpy() >> REVISION_BITS, vectors),
        "x": x,
        "y": y,
        "artist": [known((by_id or named or [""])[0]) for by_id, named in zip(ids, artists, strict=True)],
        "album": [known(by_id or named) for by_id, named in zip(album_ids, albums, strict=True)],
        "recording": [known(one or isrc) for one, isrc in zip(recordings, isrcs, strict=True)],
        "title": [known(names.bare_title(title or "")) for title in titles],
        "duration": tracks["duration_seconds"].to_numpy(zero_copy_only=False),
        "year": [int(date[:4]) if date and date[:4].isdigit() else 0 for date in dates],
    }
    kept = tracks.select(["track_key", "checksum", *SHOWN])
    for name, values in columns.items():
        kept = kept.append_column(f"_{name}", pa.array(np.asarray(values, COMPUTED[name])))
    return kept


def _mapped(folder: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(folder / TRACKS))).get_batch(0)


class Shard:
    """A shard in memory, read-only; any thread may ask it."""

    def __init__(self, folder: Path, deleted: Sequence[int] = (), number: int = 0) -> None:
        """`number` is the shard's in the manifest, which its answers carry."""
        self.number = number
        self._tracks = _mapped(folder)
        self._vectors = np.load(folder / VECTORS, mmap_mode="r")
        self._graph = hnswlib.Index(space="cosine", dim=self._vectors.shape[1])
        self._graph.load_index(str(folder / GRAPH))
        for label in deleted:
            self._graph.mark_deleted(label)
        self._names = Names(folder / NAMES)
        self._live = np.ones(self._tracks.num_rows, bool)
        self._live[list(deleted)] = False
        self._column = {name: self._tracks[f"_{name}"].to_numpy() for name in COMPUTED}
        self._candidates = np.zeros(self._tracks.num_rows, CANDIDATE)
        self._candidates["shard"], self._candidates["label"] = number, np.arange(self._tracks.num_rows)
        for name in set(CANDIDATE.names or ()) & set(COMPUTED):
            self._candidates[name] = self._column[name]
        keys = self._tracks["track_key"].to_numpy() >> REVISION_BITS
        labels = np.flatnonzero(self._live)
        self._by_key = labels[np.argsort(keys[labels], kind="stable")]  # a key is a hash: an order by lot
        self._keys = keys[self._by_key]
        self._fitting = lru_cache(maxsize=64)(self._fit)

    def __len__(self) -> int:
        """Live tracks."""
        return len(self._keys)

    def find(self, track_ids: Sequence[str]) -> dict[str, int]:
        """Labels of those that are here."""
        if not len(self):
            return {}
        keys = np.array([track_key(one, 0) >> REVISION_BITS for one in track_ids], np.int64)
        position = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        found = np.flatnonzero(self._keys[position] == keys)
        return {track_ids[number]: int(self._by_key[position[number]]) for number in found.tolist()}

    def candidates(self, labels: Sequence[int] | Labels) -> Candidates:
        """What ranking knows of tracks, but for their cosine."""
        return self._candidates[np.asarray(labels, np.int64)]

    def vectors(self, labels: Sequence[int] | Labels) -> Vectors:
        """(labels, dimension), of length 1."""
        return unit(self._vectors[np.asarray(labels, np.int64)])

    def nearest(
        self, queries: Vectors, k: int, filters: Filters = EVERYTHING, ef: int = 64
    ) -> list[Candidates]:
        """Of each query, (queries, dimension), the k nearest live tracks that fit, or all that do: by falling
        cosine, then label. `ef` is hnswlib's: how many candidates its search keeps."""
        mask, fitting = (self._live, self._by_key) if filters == EVERYTHING else self._fitting(filters)
        live, k = len(self), min(k, len(fitting))
        if not k:
            return [self._candidates[:0]] * len(queries)
        wanted = k
        if len(fitting) < live:
            wanted = int(np.ceil(GRAPH_MARGIN * k * live / len(fitting)))
            if len(fitting) <= EXACT_ROWS * max(wanted, ef):
                return self._exact(queries, k, fitting)
        if self._graph.ef != ef:
            self._graph.set_ef(ef)
        wide = wanted if wanted <= max(K, ef // 2) else min(2 * wanted, live)  # ef is at least its k
        try:
            labels, distances = self._graph.knn_query(queries, k=wide)
        except RuntimeError:  # fewer were found than asked for
            return self._exact(queries, k, fitting)
        found = self._candidates.take(labels)
        np.subtract(1, distances, out=found["cosine"])
        if (distances[:, 1:] == distances[:, :-1]).any():
            found = np.take_along_axis(found, np.lexsort((labels, distances), axis=-1), axis=1)
        if len(fitting) == live:
            return list(found if wide == k else found[:, :k])
        kept = [row[mask[row["label"]]][:k] for row in found]
        return [
            row if len(row) == k else self._exact(query[None], k, fitting)[0]
            for row, query in zip(kept, queries, strict=True)
        ]

    def _exact(self, queries: Vectors, k: int, labels: Labels) -> list[Candidates]:
        """The k nearest to each query among some labels, by comparing all."""
        units = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        labels = np.sort(labels)
        parts = [labels[start : start + ROWS_AT_ONCE] for start in range(0, len(labels), ROWS_AT_ONCE)]
        tops = [_top(units @ widened(self._vectors[part]).T, part, k + SPARE) for part in parts]
        cosines, several = (np.concatenate(side, axis=1) for side in zip(*tops, strict=True))
        found = []
        for query, chosen in zip(units, _top(cosines, several, k + SPARE)[1], strict=True):
            candidates = self._candidates.take(chosen)
            candidates["cosine"] = self.vectors(chosen) @ query
            found.append(ranked([candidates], k))
        return found

    def _fit(self, filters: Filters) -> tuple[NDArray[np.bool_], Labels]:
        """Which live tracks fit, as a mask and as labels."""
        mask = self._live.copy()
        for facet in fields(Facets):
            if included := getattr(filters.include, facet.name):
                mask &= self._has(facet.name, included)
            if excluded := getattr(filters.exclude, facet.name):
                mask &= ~self._has(facet.name, excluded)
        bounds = {"year": filters.years, "duration": filters.duration_seconds}
        for name, (least, most) in bounds.items():
            column = self._column[name]
            if least is not None:
                mask &= column >= least
            if most is not None:
                mask &= (column <= most) & (column > 0)
        if filters.explicit is not None:
            known = pa.compute.fill_null(self._tracks["explicit"], False).to_numpy(zero_copy_only=False)
            mask &= known == filters.explicit
        return mask, np.flatnonzero(mask)

    def _has(self, facet: str, values: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which tracks have one of the values."""
        hits = np.zeros(len(self._live), bool)
        if facet == "tracks":
            hits[list(self.find(values).values())] = True
            return hits
        columns = {"artists": ("artist_ids", "artist_names"), "albums": ("album_id", "album"),
                   "genres": ("genres",), "sources": ("source",)}  # fmt: skip
        for name in columns[facet]:
            column, wanted = self._tracks[name], pa.array(values, pa.string())
            listed = pa.types.is_list(column.type)
            flat = pa.compute.list_flatten(column) if listed else column
            if not name.endswith(("_id", "_ids")):
                flat, wanted = pa.compute.utf8_lower(flat), pa.compute.utf8_lower(wanted)
            equal = pa.compute.is_in(flat, wanted).to_numpy(zero_copy_only=False)
            hits[pa.compute.list_parent_indices(column).to_numpy()[equal] if listed else equal] = True
        return hits

    def count(self, filters: Filters = EVERYTHING) -> int:
        """Live tracks that fit."""
        return len(self) if filters == EVERYTHING else len(self._fitting(filters)[1])

    def rows(self, labels: Sequence[int] | Labels) -> list[Row]:
        """What the catalogue says of tracks: the columns of SHOWN."""
        taken = self._tracks.select(SHOWN).take(pa.array(np.asarray(labels, np.int64)))
        rows: list[Row] = taken.to_pylist()
        return rows

    def points(self, bbox: tuple[float, float, float, float] | None, limit: int) -> Points:
        """Places on the map within (left, bottom, right, top), those of the lowest lot first: what the whole
        map shows of a part, the part shows too."""
        labels = self._by_key
        if bbox is not None:
            x, y = self._column["x"][labels], self._column["y"][labels]
            left, bottom, right, top = bbox
            inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
            labels = labels[inside]
            lots = self._keys[inside][:limit]
        else:
            lots = self._keys[:limit]
        points = np.empty(len(lots), POINT)
        points["shard"], points["label"], points["lot"] = self.number, labels[:limit], lots
        points["x"], points["y"] = self._column["x"][labels[:limit]], self._column["y"][labels[:limit]]
        return points

    def search(self, text: str, limit: int) -> list[tuple[int, float]]:
        """Labels, with a score up to 1, of the tracks whose title, artists and album are like the text, best
        first; without words, those of the lowest lot."""
        if not names.words(text):
            return [(int(label), 1.0) for label in self._by_key[:limit]]
        return self._names.search(text, limit, self._live)


def _top(cosines: Vectors, labels: Labels, k: int) -> tuple[Vectors, Labels]:
    """The k largest cosines of each row, in any order, and their labels: both (queries, k)."""
    labels = np.broadcast_to(labels, cosines.shape)
    if cosines.shape[1] <= k:
        return cosines, labels
    chosen = np.argpartition(cosines, -k, axis=1)[:, -k:]
    return np.take_along_axis(cosines, chosen, axis=1), np.take_along_axis(labels, chosen, axis=1)


def ranked(parts: Sequence[Candidates], k: int) -> Candidates:
    """The k best of several lists: by falling cosine, then place."""
    every = np.concatenate(parts)
    return every[np.lexsort((every["label"], every["shard"], -every["cosine"]))[:k]]
