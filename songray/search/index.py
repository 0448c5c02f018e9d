"""One version of an index, opened in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from songray.library import Library, Row, Vectors
from songray.search.attributes import CATEGORICAL
from songray.search.candidates import Box, Candidates, Place, Points, by_cosine, merge, merge_points
from songray.search.filters import EVERYTHING, Filters
from songray.search.shard import Shard
from songray.search.tags import Tags
from songray.search.version import Version, local_copy


class Index:
    """Shards of one version, read-only; a Searcher (songray/search/ranking.py)."""

    def __init__(self, version: Version, shards: Sequence[Shard]) -> None:
        self.version = version
        self.shards = {shard.number: shard for shard in shards}
        self.partial = False  # shards in this process always answer

    @classmethod
    def open(cls, library: Library, version: Version, numbers: Sequence[int] | None = None) -> Index:
        """Verify and open the shards of a version, or those with some numbers. Raises CorruptData."""
        shards, tags = [], Tags(version.tags)
        for number in range(len(version.shards)) if numbers is None else numbers:
            entry = version.shards[number]
            with local_copy(library, version.run, entry) as folder:
                shards.append(Shard(folder, entry.deleted_labels.tolist(), number, tags))
        return cls(version, shards)

    def __len__(self) -> int:
        """Live tracks."""
        return sum(map(len, self.shards.values()))

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        """For each id that the index contains an array of one CANDIDATE, without a cosine."""
        by_id: dict[str, Candidates] = {}
        for shard in self.shards.values():
            labels = shard.find(track_ids)
            candidates = shard.candidates(list(labels.values()))
            by_id |= {track_id: candidates[[row]] for row, track_id in enumerate(labels)}
        return by_id

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        """(places, dimension), of length 1."""
        vectors = np.empty((len(places), self.version.dimension), np.float32)
        numbers, labels = np.array(places, np.int64).reshape(-1, 2).T
        for number, shard in self.shards.items():
            vectors[numbers == number] = shard.vectors(labels[numbers == number])
        return vectors

    async def nearest(self, queries: Vectors, k: int, filters: Filters = EVERYTHING) -> list[Candidates]:
        """For each query, (queries, dimension), the k nearest tracks that match the filters, or all where
        fewer match: by descending cosine, then place."""
        shards, ef = list(self.shards.values()), self.version.ef
        if filters == EVERYTHING:  # takes less time than a change of threads
            parts = [shard.nearest(queries, k, filters, ef) for shard in shards]
        else:
            calls = (asyncio.to_thread(shard.nearest, queries, k, filters, ef) for shard in shards)
            parts = await asyncio.gather(*calls)
        return merge(parts, len(queries), k) if len(parts) != 1 else parts[0]

    async def attribute(self, places: Sequence[Place], name: str, query: Vectors | None) -> NDArray[Any]:
        """An attribute of tracks, or their cosine with a query: see Shard.attribute."""
        numbers, labels = np.array(places, np.int64).reshape(-1, 2).T
        values = np.empty(len(labels), object if query is None and name in CATEGORICAL else np.float32)
        for number, shard in self.shards.items():
            own = numbers == number
            values[own] = await asyncio.to_thread(shard.attribute, labels[own], name, query)
        return values

    async def described(self, weights: dict[str, float], k: int, filters: Filters = EVERYTHING) -> Candidates:
        """The k tracks that match the filters and whose tags fit best: see Shard.described."""
        calls = (asyncio.to_thread(shard.described, weights, k, filters) for shard in self.shards.values())
        return by_cosine(await asyncio.gather(*calls), k)

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        """The catalogue's description of each track."""
        rows: dict[Place, Row] = {}
        for number, shard in self.shards.items():
            labels = [label for owner, label in places if owner == number]
            rows |= {(number, label): row for label, row in zip(labels, shard.rows(labels), strict=True)}
        return [rows[place] for place in places]

    async def search(self, text: str, limit: int) -> list[Place]:
        """Tracks whose title, artists and album match a text, best first."""
        return [place for _, place in await self.scored(text, limit)]

    async def scored(self, text: str, limit: int) -> list[tuple[float, Place]]:
        """As `search`, each place after its negated score: sorting concatenated lists then merges them."""
        calls = (asyncio.to_thread(shard.search, text, limit) for shard in self.shards.values())
        parts = zip(self.shards, await asyncio.gather(*calls), strict=True)
        return sorted((-score, (number, label)) for number, part in parts for label, score in part)[:limit]

    async def points(self, bbox: Box | None, limit: int) -> Points:
        """A sample of the points of the map in a box, by ascending sample rank."""
        return merge_points([shard.points(bbox, limit) for shard in self.shards.values()], limit)
