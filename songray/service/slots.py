"""An index over several processes: slots, each of which holds some of the shards, asked as one.

Which shards a slot holds follows from its number and the manifest: a larger index needs no other slots. A
question names its version: while a new one goes live, slots answer from both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import ray.exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from songray.learning import runs
from songray.library import Library, Vectors
from songray.search.shard import Candidates, Filters, Place, Points, Row
from songray.search.version import Index, Manifest, manifests, merged
from songray.service.problems import overloaded

ATTEMPTS = 3  # at a deployment of which a replica has died
PAUSE_SECONDS = 0.2
SLOT_SECONDS = 5.0  # after which a slot's part of an answer is left out

logger = logging.getLogger("ray.serve")
Loaded = TypeVar("Loaded")


class Versions(Generic[Loaded]):
    """Versions of an index in this process: the one that answers, and the one before it, which questions may
    still name. Follows the library: a newer one is loaded beside the old one, and then takes its place."""

    def __init__(
        self,
        library: Library,
        run: str,
        load: Callable[[Manifest], Awaitable[Loaded]],
        watch_seconds: float,
    ) -> None:
        self.library, self.run, self.load, self.watch_seconds = library, run, load, watch_seconds
        self.live = ""
        self._loaded: dict[str, Loaded] = {}
        self._loading = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def current(self) -> Loaded:
        if self.live not in self._loaded:
            raise overloaded("the index is being loaded")
        return self._loaded[self.live]

    async def follow(self, version: str) -> None:
        """Answer from a version, or, where none is named, from the newest there is, from now on."""
        if self._watching:
            self._watching.cancel()
        await self._go_live(version)
        if not version:
            self._watching = asyncio.create_task(self._watch())

    async def named(self, version: str) -> Loaded:
        """That version, loaded now if need be."""
        if version not in self._loaded:
            await self._load(await asyncio.to_thread(manifest_of, self.library, self.run, version))
        return self._loaded[version]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.watch_seconds)
            try:
                await self._go_live("")
            except Exception:  # damaged, or storage is away: the old one goes on
                logger.exception("a new version of indexes/%s cannot be loaded", self.run)

    async def _go_live(self, version: str) -> None:
        manifest = await asyncio.to_thread(manifest_of, self.library, self.run, version)
        await self._load(manifest)
        self.live = manifest.version

    async def _load(self, manifest: Manifest) -> None:
        async with self._loading:
            if manifest.version in self._loaded:
                return
            loaded = await self.load(manifest)
            kept = {name: one for name, one in self._loaded.items() if name == self.live}
            self._loaded = {**kept, manifest.version: loaded}


def manifest_of(library: Library, run: str, version: str = "") -> Manifest:
    """Of a version, or of the newest; raises ValueError where there is none."""
    found = list(manifests(library, run))
    if not found:
        raise ValueError(f"indexes/{run} is empty: run jobs/index.py first")
    for manifest in found:
        if version in ("", manifest.version):
            return manifest
    there = ", ".join(manifest.version for manifest in found)
    raise ValueError(f"--version {version}: indexes/{run} has {there}")


class Slot:
    """Deployment: answers for some of the shards."""

    def __init__(self, library: Library, run: str, number: int, slots: int, watch_seconds: float) -> None:
        async def load(manifest: Manifest) -> Index:
            shards = range(number, len(manifest.shards), slots)
            return await asyncio.to_thread(Index.open, library, manifest, shards)

        self.versions = Versions(library, runs.choose(library, run).name, load, watch_seconds)

    async def reconfigure(self, config: dict[str, str]) -> None:
        await self.versions.follow(config["version"])

    async def ask(self, version: str, method: str, *arguments: Any) -> Any:
        return await getattr(await self.versions.named(version), method)(*arguments)


class Slots:
    """A Searcher over all slots, for one request."""

    def __init__(self, manifest: Manifest, slots: Sequence[DeploymentHandle]) -> None:
        self.manifest, self.slots = manifest, slots
        self.partial = False  # until a slot fails

    async def find(self, track_ids: Sequence[str]) -> dict[str, Candidates]:
        found: dict[str, Candidates] = {}
        for part in await self._all("find", track_ids):
            found |= part
        if self.partial and len(found) < len(set(track_ids)):
            raise overloaded("a part of the index does not answer, which may hold what is asked for")
        return found

    async def vectors(self, places: Sequence[Place]) -> Vectors:
        vectors = np.empty((len(places), self.manifest.dimension), np.float32)
        for positions, part in await self._owners("vectors", places):
            vectors[positions] = part
        return vectors

    async def nearest(self, queries: Vectors, k: int, filters: Filters) -> list[Candidates]:
        return merged(await self._all("nearest", queries, k, filters), k)

    async def rows(self, places: Sequence[Place]) -> list[Row]:
        rows: dict[int, Row] = {}
        for positions, part in await self._owners("rows", places):
            rows |= dict(zip(positions, part, strict=True))
        return [rows[position] for position in range(len(places))]

    async def search(self, text: str, limit: int) -> list[Place]:
        parts = await self._all("scored", text, limit)
        return [place for _, place in sorted(found for part in parts for found in part)[:limit]]

    async def points(self, bbox: tuple[float, float, float, float] | None, limit: int) -> Points:
        every = np.concatenate(await self._all("points", bbox, limit))
        return every[np.argsort(every["lot"], kind="stable")[:limit]]

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What the slots answer that answer in time; raises Refusal where none does."""
        holding = self.slots[: len(self.manifest.shards)]  # the others hold none
        asked = (asked_in_time(slot, self.manifest.version, method, *arguments) for slot in holding)
        answers = await asyncio.gather(*asked)
        found = [answer for answer in answers if answer is not None]
        self.partial |= len(found) < len(answers)
        if not found:
            raise overloaded("no part of the index answers")
        return found

    async def _owners(self, method: str, places: Sequence[Place]) -> Iterator[tuple[list[int], Any]]:
        """Ask the slots that hold some places; their answers, with the positions among the places."""
        of: dict[int, list[int]] = {}
        for position, (shard, _) in enumerate(places):
            of.setdefault(shard % len(self.slots), []).append(position)
        asked = (
            asked_in_time(self.slots[slot], self.manifest.version, method, [places[one] for one in positions])
            for slot, positions in of.items()
        )
        answers = await asyncio.gather(*asked)
        if any(answer is None for answer in answers):
            raise overloaded("a part of the index has ceased to answer")
        return zip(of.values(), answers, strict=True)


async def asked_in_time(slot: DeploymentHandle, *arguments: Any) -> Any:
    """A slot's answer, or None."""
    try:
        async with asyncio.timeout(SLOT_SECONDS):
            return await asked(slot.ask, *arguments)
    except (TimeoutError, *LOST) as error:
        logger.warning("a slot does not answer: %r", error)
        return None


LOST = (ray.exceptions.RayActorError, DeploymentUnavailableError, BackPressureError)


async def asked(method: Any, *arguments: Any) -> Any:
    """What a method of another deployment answers; where its replica dies, of another replica."""
    for attempt in range(ATTEMPTS):
        try:
            return await method.remote(*arguments)
        except ray.exceptions.RayActorError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE_SECONDS)
