"""Versions of an index that are loaded in this process, and the interface of one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from songray.errors import InvalidOption, MissingInput, SongrayError
from songray.library import Library, Vectors
from songray.search.candidates import Box, Place, Points
from songray.search.ranking import Searcher
from songray.search.version import Version, read_version, version_names, versions
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

    async def attribute(self, places: Sequence[Place], name: str, query: Vectors | None) -> NDArray[Any]:
        """An attribute of tracks, or their cosine with a query: see Shard.attribute."""


class Snapshots(Generic[Loaded]):
    """The version that is served, and the one before it, which requests in progress may still name.

    Either serves one version, or follows the newest: loads each beside the old one, and then replaces it. A
    version may disappear at any time: then the newest that can be opened is served, or the current one still.
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
        self._logged: set[str] = set()

    @property
    def current(self) -> Loaded:
        if self.served not in self._loaded:
            raise unavailable("the index is being loaded")
        return self._loaded[self.served]

    async def serve(self, name: str) -> None:
        """Load and serve a version; "": the newest that can be opened, from now on. Raises MissingInput or
        InvalidOption, and what opening raised where nothing is served yet."""
        self.stop()
        if name:
            version = await asyncio.to_thread(find_version, self.library, self.run, name)
            await self._load(version)
            self.served = version.version
        else:
            await self._serve_newest()
            self._watching = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """Follow no new versions any more."""
        if self._watching:
            self._watching.cancel()

    async def named(self, name: str) -> Loaded:
        """A version by name, loaded now where it is not yet."""
        if name not in self._loaded:
            await self._load(await asyncio.to_thread(find_version, self.library, self.run, name))
        return self._loaded[name]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.watch_seconds)
            try:
                await self._serve_newest()
            except Exception as error:  # storage fails
                self._log_once("its versions", f"cannot be listed: {error}", error)

    async def _serve_newest(self) -> None:
        """Serve the newest version that can be opened; where none is newer, the current one stays.

        Versions are listed again after each failure: `songray index` publishes one, and prunes, at any time.
        """
        failed: dict[str, Exception | None] = {}
        while True:
            names = await asyncio.to_thread(version_names, self.library, self.run)
            if self.served and names[-1:] == [self.served]:
                return
            newer = [name for name in names if name > self.served] or names[-1:]  # a new index counts from 1
            name = max((name for name in newer if name not in failed), default="")
            if not name:
                break
            try:
                if version := await asyncio.to_thread(read_version, self.library, self.run, name):
                    await self._load(version)
                    self.served = name
                    return
                failed[name] = None  # it is not finished, or has disappeared
            except Exception as error:  # it is damaged, a part of it has disappeared, or storage fails
                failed[name] = error
                self._log_once(f"version {name}", f"cannot be opened: {error}", error)
        if not self.served:
            raise next(filter(None, failed.values()), no_version(self.run))
        if self.served not in names:
            self._log_once(f"version {self.served}", "has disappeared from storage")

    def _log_once(self, what: str, problem: str, error: Exception | None = None) -> None:
        """Log, once for each version, why it is not served; with a traceback where that is a defect."""
        if what not in self._logged:
            self._logged.add(what)
            is_defect = error is not None and not isinstance(error, SongrayError | OSError)
            served = f"version {self.served} is still served" if self.served else "an earlier one is opened"
            logger.warning(
                "indexes/%s: %s %s; %s", self.run, what, problem, served, exc_info=is_defect and error
            )

    async def _load(self, version: Version) -> None:
        async with self._loading:
            if version.version in self._loaded:
                return
            loaded = await self.load(version)
            kept = {name: other for name, other in self._loaded.items() if name == self.served}
            self._loaded = {**kept, version.version: loaded}


def with_latest(loaded: Mapping[str, Loaded], name: str, value: Loaded) -> dict[str, Loaded]:
    """What is loaded by name: the value, at the end, and of the others the last one, which requests in
    progress may still name."""
    others = {other: kept for other, kept in loaded.items() if other != name}
    return {**dict(list(others.items())[-1:]), name: value}


def find_version(library: Library, run: str, name: str = "") -> Version:
    """A version of a run's index; "": the newest. Raises MissingInput or InvalidOption."""
    existing = versions(library, run)
    if not existing:
        raise no_version(run)
    for version in existing:
        if name in ("", version.version):
            return version
    names = ", ".join(version.version for version in existing)
    raise InvalidOption(f"--version {name}: indexes/{run} contains {names}")


def no_version(run: str) -> MissingInput:
    return MissingInput(f"indexes/{run} is empty: run `songray index` first")
