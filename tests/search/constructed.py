"""Constructed vectors and rows that the tests of search share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from songray.keys import REVISION_BITS, track_key
from songray.learning import runs
from songray.learning.runs import Run
from songray.library import Library, Row, Vectors
from songray.search.candidates import CANDIDATE, Candidates, Place
from songray.search.filters import Filters
from songray.search.hnsw import GraphOptions
from songray.search.ranking import RankingOptions, Recommendation
from songray.search.reference import Reference
from songray.search.shard_files import write_shard
from songray.tables import TABLES

RUN = "mfcc-x"
OPTIONS = GraphOptions({"M": 16, "ef_construction": 100}, recall_target=0.99)
GENRES = ("Rock", "Jazz", "Folk", "Ambient")


def units(count: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of `tracks` among which each filter selects some, with unknown values."""
    return [
        {"track_key": track_key(f"a:{n}", 0), "checksum": n, "track_id": f"a:{n}", "source": "ab"[n % 2],
         "title": f"Song {n}", "artist_ids": [f"r{n % 7}"], "artist_names": [f"Artist {n % 7}"],
         "album_id": f"l{n % 11}", "album": f"Album {n % 11}",
         "genres": [GENRES[n % 4], "Music"][: 1 + n % 2],
         "release_date": None if n % 5 == 0 else f"{1960 + n % 50}-01-01", "crawl": 1,
         "duration_seconds": None if n % 6 == 0 else 100.0 + n % 200, "explicit": (None, True, False)[n % 3]}
        for n in range(count)
    ]  # fmt: skip


def shard_folder(
    folder: Path,
    vectors: np.ndarray,
    rows: list[dict[str, Any]],
    before: Path | None = None,
    options: GraphOptions = OPTIONS,
) -> Path:
    """The files of a shard, whose reference is a sample of its own tracks."""
    table = pa.Table.from_pylist(rows, pa.schema(TABLES["tracks"].columns))
    numbers = table["track_key"].to_numpy() >> REVISION_BITS
    sample = np.argsort(numbers)[:50]
    folder.mkdir()
    write_shard(folder, vectors, table, Reference(numbers[sample], vectors[sample]), options, before)
    return folder


def add_tracks(
    library: Library,
    vectors: np.ndarray,
    first: int = 0,
    revision: int = 0,
    tags: list[list[float] | None] | None = None,
) -> None:
    """Add tracks `a:<n>` with vectors, and probabilities of tags, as the stages before `index` do."""
    ids = [f"a:{number}" for number in range(first, first + len(vectors))]
    keys = [track_key(track_id, revision) for track_id in ids]
    table = library.table("tracks")
    described = [
        {
            "track_key": key,
            "track_id": track_id,
            "crawl": 1 + 2 * revision,
            "source": "a",
            "title": f"Björk {track_id[2:]}",
            "genres": [],
            "artist_names": ["The Knife"],
            "artist_ids": ["x"],
            "location": "/private/place.mp3",
        }
        for key, track_id in zip(keys, ids, strict=True)
    ]
    table.append(pa.Table.from_pylist(described, table.schema()), f"{first}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
    embedded = {"track_key": pa.array(keys, pa.int64()), "track_id": ids, "embedding": column}
    if tags is not None:
        embedded["tags"] = pa.array(tags, TABLES["embeddings"].columns["tags"])
    library.table("embeddings", RUN).append(pa.table(embedded), f"{first}")


def add_run(library: Library, model: str = "mfcc") -> Library:
    """Add the record of a finished run; an index needs nothing else of it."""
    counts = {"train": 1, "validation": 1}
    runs.save_record(library, Run(RUN, model, {}, {}, "default", counts, "", {}, {}, []))
    return library


class ExactSearcher:
    """A Searcher over vectors, by exact search. Track `n` has the number n; each shard has two tracks."""

    def __init__(self, vectors: np.ndarray, **columns: Sequence[float]) -> None:
        """`columns` of CANDIDATE: artist, album, recording, title or duration of each track."""
        self.units = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.candidates = np.zeros(len(vectors), CANDIDATE)
        self.candidates["shard"], self.candidates["label"] = np.divmod(np.arange(len(vectors)), 2)
        self.candidates["duration"] = np.nan
        for name, values in columns.items():
            self.candidates[name] = values

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        existing = [track_id for track_id in track_ids if int(track_id) < len(self.units)]
        return {track_id: self.candidates[[int(track_id)]] for track_id in existing}

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        return self.units[[shard * 2 + label for shard, label in places]]

    async def nearest(self, queries: Vectors, k: int, filters: Filters) -> list[Candidates]:
        nearest = []
        for query in queries:
            candidates = self.candidates.copy()
            candidates["cosine"] = self.units @ query
            nearest.append(candidates[np.argsort(-candidates["cosine"], kind="stable")][:k])
        return nearest

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        return [{"track_id": str(shard * 2 + label)} for shard, label in places]


def track_ids(answer: Coroutine[Any, Any, Sequence[Row | Recommendation]]) -> list[str]:
    """Run a query; the ids of the tracks that it returns."""
    items = asyncio.run(answer)
    return [(item if isinstance(item, dict) else item.track)["track_id"] for item in items]


UNLIMITED = RankingOptions(k=1000, per_artist=0, per_album=0)
spaces = st.builds(
    lambda count, seed: np.random.default_rng(seed).normal(size=(count, 5)),
    st.integers(2, 40),
    st.integers(0, 1000),
)
