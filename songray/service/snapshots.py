"""Versions of an index that are loaded in this process, and the interface of one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from songray.errors import InvalidOption, MissingInput
from songray.library import Library
from songray.search.ranking import Searcher
from songray.search.shard import Box, Place, Points
from songray.search.version import Version, versions
from songray.service.problems import unavailable

logger = logging.getLogger("ray.serve")
Loaded = TypeVar("Loaded")


class IndexSnapshot(Searcher, Protocol):
    """One version of the index, for one request."""

    version: Version
    partial: bool  # a part of the index has not answered this request

    async def search(self, text: str, limit: int) -> list[Place]:
        """Tracks whose title, artists or album match the text, best first; without text, a sample."""

    async def points(self, bbox: Box | None, limit: int) -> Points:
        """A sample of the points of the map in a box, by ascending sample rank."""


class Snapshots(Generic[Loaded]):
    """The version that is served, and the one before it, which requests in progress may still name.

    Either serves one version, or follows the newest: loads each beside the old one, and then replaces it.
    """

    def __init__(
        self,
        library: Library,
        run: str,
        load: Callable[[Version], Awaitable[Loaded]],
        watch_seconds: float,
    ) -> None:
        self.library, self.run, self.load, self.watch_seconds = library, run, load, watch_seconds
        self.served = ""
        self._loaded: dict[str, Loaded] = {}
        self._loading = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def current(self) -> Loaded:
        if self.served not in self._loaded:
            raise unavailable("the index is being loaded")
        return self._loaded[self.served]

    async def serve(self, name: str) -> None:
        """Load and serve a version; "": the newest, from now on. Raises MissingInput or InvalidOption."""
        if self._watching:
            self._watching.cancel()
        await self._serve_once(name)
        if not name:
            self._watching = asyncio.create_task(self._watch())

    async def named(self, name: str) -> Loaded:
        """A version by name, loaded now where it is not yet."""
        if name not in self._loaded:
            await self._load(await asyncio.to_thread(find_version, self.library, self.run, name))
        return self._loaded[name]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.watch_seconds)
            try:
                await self._serve_once("")
            except Exception:  # the version is damaged, or storage fails: the old one stays
                logger.exception("a new version of indexes/%s cannot be loaded", self.run)

    async def _serve_once(self, name: str) -> None:
        version = await asyncio.to_thread(find_version, self.library, self.run, name)
        await self._load(version)
        self.served = version.version

    async def _load(self, version: Version) -> None:
        async with self._loading:
            if version.version in self._loaded:
                return
            loaded = await self.load(version)
            kept = {name: other for name, other in self._loaded.items() if name == self.served}
            self._loaded = {**kept, version.version: loaded}


def find_version(library: Library, run: str, name: str = "") -> Version:
    """A version of a run's index; "": the newest. Raises MissingInput or InvalidOption."""
    existing = versions(library, run)
    if not existing:
        raise MissingInput(f"indexes/{run} is empty: run `songray index` first")
    for version in existing:
        if name in ("", version.version):
            return version
    names = ", ".join(version.version for version in existing)
    raise InvalidOption(f"--version {name}: indexes/{run} contains {names}")
