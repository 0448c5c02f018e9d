"""The deployment that answers HTTP requests. It runs without torch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from songray.catalogue.sources.base import AudioLocation
from songray.catalogue.sources.registry import SearchableSource
from songray.learning import runs
from songray.library import Library, Row, Vectors
from songray.search.index import Index
from songray.search.version import Version
from songray.service.external import ExternalSources
from songray.service.options import IngressConfig
from songray.service.problems import unavailable
from songray.service.slots import UNREACHABLE, SlottedIndex, call_replica
from songray.service.snapshots import IndexSnapshot, Snapshots

if TYPE_CHECKING:  # it loads torch
    from songray.service.uploads import EmbeddedUpload

EXTERNAL_SHARE = 8  # at most one in so many of the requests that a replica executes waits for other sources
STATUSES = {"not_audio": 415, "empty": 415, "too_long": 413}  # by kind of error; 422 for all others


class Ingress:
    """Deployment: the Service of the routes."""

    def __init__(
        self,
        library: Library,
        config: IngressConfig,
        encoder: DeploymentHandle | None,
        slots: list[DeploymentHandle],
    ) -> None:
        self.library, self.config, self.encoder, self.slots = library, config, encoder, slots
        self.external = ExternalSources(config.external, max(1, config.max_ongoing // EXTERNAL_SHARE))
        self.snapshots: Snapshots[Index | Version] | None = None
        self.other: Snapshots[Index | Version] | None = None  # of the run that is compared

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve a version of a run, and the newest one of the run that is compared, if any. Another run
        replaces the current one once it is loaded; requests in progress keep the snapshot that they began
        with."""
        before = {snapshots for snapshots in (self.snapshots, self.other) if snapshots}
        self.snapshots = await self._snapshots(self.snapshots, config["run"], config["version"])
        compared = config.get("compared")
        self.other = await self._snapshots(self.other, compared, "") if compared else None
        for replaced in before - {self.snapshots, self.other}:
            replaced.stop()

    async def _snapshots(
        self, current: Snapshots[Index | Version] | None, run: str, version: str
    ) -> Snapshots[Index | Version]:
        """The snapshots of a run, which serve a version: the current ones, where they are of this run."""
        name = runs.choose(self.library, run).name
        if current is None or current.run != name:
            current = Snapshots(self.library, name, self._load, self.config.watch_seconds)
        await current.serve(version)
        return current

    def snapshot(self) -> IndexSnapshot:
        if self.snapshots is None:
            raise unavailable("the index is being loaded")
        return self._index(self.snapshots)

    def compared(self) -> IndexSnapshot | None:
        return self._index(self.other) if self.other else None

    def _index(self, snapshots: Snapshots[Index | Version]) -> IndexSnapshot:
        current = snapshots.current
        return SlottedIndex(current, self.slots) if isinstance(current, Version) else current

    async def embed(self, audio: bytes, run: str) -> Vectors:
        if self.encoder is None:
            raise unavailable("this service accepts no uploads: it runs with --encoders 0")
        try:
            upload: EmbeddedUpload = await call_replica(self.encoder.embed, audio, run)
        except UNREACHABLE as error:
            raise unavailable("too many uploads are being embedded") from error
        if upload.vector is None:
            raise HTTPException(STATUSES.get(upload.error, 422), f"{upload.error}: {upload.detail}")
        return upload.vector

    async def embed_text(self, text: str, run: str) -> Vectors | None:
        if self.encoder is None:
            return None
        try:
            vector: Vectors | None = await call_replica(self.encoder.embed_text, text, run)
        except UNREACHABLE as error:
            raise unavailable("too many uploads are being embedded") from error
        return vector

    async def locate(self, track: Row) -> AudioLocation:
        return await self.external.locate(track)

    async def first_preview(self, source: SearchableSource, words: str) -> tuple[str, bytes]:
        return await self.external.first_preview(source, words)

    async def _load(self, version: Version) -> Index | Version:
        """The index; where slots have it, its version, once all of them have loaded it."""
        if not self.slots:
            return await asyncio.to_thread(Index.open, self.library, version)
        calls = (call_replica(slot.call, version.run, version.version, "find", []) for slot in self.slots)
        await asyncio.gather(*calls)
        return version
