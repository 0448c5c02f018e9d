"""What the routes depend on: the service of this process, and one version of its index for each request."""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import Depends, Request

from songray.catalogue.sources.base import AudioLocation
from songray.catalogue.sources.registry import SearchableSource
from songray.library import Library, Row, Vectors
from songray.service.snapshots import IndexSnapshot


class Service(Protocol):
    """What the routes need from the process that they run in."""

    library: Library

    def snapshot(self) -> IndexSnapshot:
        """Raises HTTPException while no version is loaded."""

    def compared(self) -> IndexSnapshot | None:
        """The index of another run, with which the page compares; None where the options name none. Raises
        HTTPException while it is not loaded."""

    async def embed(self, audio: bytes, run: str) -> Vectors:
        """The vector that a run gives audio, (dimension,), of length 1. Raises HTTPException where the audio
        cannot be embedded."""

    async def embed_text(self, text: str, run: str) -> Vectors | None:
        """The vector that a run gives a text, (dimension,), of length 1; None where it takes no text, or this
        service embeds nothing. Raises HTTPException where the text cannot be embedded now."""

    async def locate(self, track: Row) -> AudioLocation:
        """Where the audio of a row of an index is now. Raises HTTPException."""

    async def first_preview(self, source: SearchableSource, words: str) -> tuple[str, bytes]:
        """Id and audio of the first result of an external source. Raises HTTPException."""


async def current_service(request: Request) -> Service:
    service: Service = request.app.state.service()
    return service


async def current_snapshot(request: Request) -> IndexSnapshot:
    service: Service = request.app.state.service()
    return service.snapshot()


CurrentService = Annotated[Service, Depends(current_service)]
CurrentSnapshot = Annotated[IndexSnapshot, Depends(current_snapshot)]
