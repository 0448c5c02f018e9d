"""An index that is spread over several processes, the slots.

The shards of a slot follow from its number and the version: a larger index needs no other slots. A call names
its run and its version: while a new one is loaded, slots answer from both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray.exceptions
from numpy.typing import NDArray
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from songray.errors import SongrayError
from songray.learning import runs
from songray.library import Library, Row, Vectors
from songray.search.attributes import CATEGORICAL
from songray.search.candidates import Box, Candidates, Place, Points, by_cosine, merge, merge_points
from songray.search.filters import Filters
from songray.search.index import Index
from songray.search.version import Version
from songray.service.problems import unavailable
from songray.service.snapshots import Snapshots, with_latest

ATTEMPTS = 3  # calls of a deployment whose replicas die
RETRY_SECONDS = 0.2
SLOT_SECONDS = 5.0  # after which results are returned without those of a slot
UNREACHABLE = (ray.exceptions.RayActorError, DeploymentUnavailableError, BackPressureError)

logger = logging.getLogger("ray.serve")


class Slot:
    """Deployment: has some of the shards."""

    def __init__(self, library: Library, number: int, slots: int, watch_seconds: float) -> None:
        self.library, self.number, self.slots, self.watch_seconds = library, number, slots, watch_seconds
        self.snapshots: dict[str, Snapshots[Index]] = {}  # of the run that is served and of one other

    async def reconfigure(self, config: dict[str, str]) -> None:
        run = runs.choose(self.library, config["run"]).name
        await self._of(run).serve(config["version"])
        for other in self.snapshots.keys() - {run}:
            self.snapshots[other].stop()

    async def call(self, run: str, version: str, method: str, *arguments: Any) -> Any:
        """Call a method of the Index of a version of a run."""
        return await getattr(await self._of(run).named(version), method)(*arguments)

    def _of(self, run: str) -> Snapshots[Index]:
        """The snapshots of a run, and from then on of no other run but the one used before it."""
        snapshots = self.snapshots.get(run)
        if snapshots is None:
            snapshots = Snapshots(self.library, run, self._load, self.watch_seconds)
        self.snapshots = with_latest(self.snapshots, run, snapshots)
        return snapshots

    async def _load(self, version: Version) -> Index:
        numbers = range(self.number, len(version.shards), self.slots)
        return await asyncio.to_thread(Index.open, self.library, version, numbers)


class SlottedIndex:
    """An IndexSnapshot of all slots."""

    def __init__(self, version: Version, slots: Sequence[DeploymentHandle]) -> None:
        self.version, self.slots = version, slots
        self.partial = False  # until a slot does not answer

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        candidates: dict[str, Candidates] = {}
        for part in await self._call_all("find", track_ids):
            candidates |= part
        if self.partial and len(candidates) < len(set(track_ids)):
            raise unavailable("a part of the index, which may contain the track, does not answer")
        return candidates

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        vectors = np.empty((len(places), self.version.dimension), np.float32)
        for positions, part in await self._call_owners("vectors", places):
            vectors[positions] = part
        return vectors

    async def nearest(self, queries: Vectors, k: int, filters: Filters) -> list[Candidates]:
        return merge(await self._call_all("nearest", queries, k, filters), len(queries), k)

    async def described(self, weights: dict[str, float], k: int, filters: Filters) -> Candidates:
        return by_cosine(await self._call_all("described", weights, k, filters), k)

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        rows: dict[int, Row] = {}
        for positions, part in await self._call_owners("rows", places):
            rows |= dict(zip(positions, part, strict=True))
        return [rows[position] for position in range(len(places))]

    async def attribute(self, places: Sequence[Place], name: str, query: Vectors | None) -> NDArray[Any]:
        values = np.empty(len(places), object if query is None and name in CATEGORICAL else np.float32)
        for positions, part in await self._call_owners("attribute", places, name, query):
            values[positions] = part
        return values

    async def search(self, text: str, limit: int) -> list[Place]:
        parts = await self._call_all("scored", text, limit)
        return [place for _, place in sorted(item for part in parts for item in part)[:limit]]

    async def points(self, bbox: Box | None, limit: int) -> Points:
        return merge_points(await self._call_all("points", bbox, limit), limit)

    async def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        """The results of the slots with shards that answer in time. Raises HTTPException where none does."""
        with_shards = self.slots[: len(self.version.shards)]
        calls = (self._call(slot, method, *arguments) for slot in with_shards)
        results = await asyncio.gather(*calls)
        present = [result for result in results if result is not None]
        self.partial |= len(present) < len(results)
        if results and not present:
            raise unavailable("no part of the index answers")
        return present

    async def _call_owners(
        self, method: str, places: Sequence[Place], *arguments: Any
    ) -> Iterator[tuple[list[int], Any]]:
        """The results of the slots whose shards contain the places, each with its positions among them."""
        positions_of: dict[int, list[int]] = {}
        for position, (shard, _) in enumerate(places):
            positions_of.setdefault(shard % len(self.slots), []).append(position)
        calls = (
            self._call(self.slots[slot], method, [places[i] for i in positions], *arguments)
            for slot, positions in positions_of.items()
        )
        results = await asyncio.gather(*calls)
        if any(result is None for result in results):
            raise unavailable("a part of the index no longer answers")
        return zip(positions_of.values(), results, strict=True)

    async def _call(self, slot: DeploymentHandle, method: str, *arguments: Any) -> Any:
        return await call_in_time(slot, self.version.run, self.version.version, method, *arguments)


async def call_in_time(slot: DeploymentHandle, *arguments: Any) -> Any:
    """The result of Slot.call, or None where the slot does not answer within SLOT_SECONDS."""
    try:
        async with asyncio.timeout(SLOT_SECONDS):
            return await call_replica(slot.call, *arguments)
    except (SongrayError, OSError, *UNREACHABLE) as error:  # OSError: also no answer in time
        logger.warning("a slot does not answer: %r", error)
        return None


async def call_replica(method: Any, *arguments: Any) -> Any:
    """Call a method of another deployment; where its replica dies, again on another replica."""
    for attempt in range(ATTEMPTS):
        try:
            return await method.remote(*arguments)
        except ray.exceptions.RayActorError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(RETRY_SECONDS)
