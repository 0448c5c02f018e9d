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

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve a version of a run. Another run replaces the current one once it is loaded; requests in
        progress keep the snapshot that they began with."""
        run, current = runs.choose(self.library, config["run"]).name, self.snapshots
        if current and current.run == run:
            await current.serve(config["version"])
            return
        snapshots = Snapshots(self.library, run, self._load, self.config.watch_seconds)
        await snapshots.serve(config["version"])
        self.snapshots = snapshots
        if current:
            current.stop()

    def snapshot(self) -> IndexSnapshot:
        if self.snapshots is None:
            raise unavailable("the index is being loaded")
        current = self.snapshots.current
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
