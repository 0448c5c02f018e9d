"""The preview of the first track that an external source returns for a search.

Sources answer slowly, or not at all: requests to them have threads of their own, of which there are few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from starlette.exceptions import HTTPException

from songray import web
from songray.catalogue.sources.base import AudioLocation, Source, Track
from songray.catalogue.sources.registry import DEFAULT_ISRC_SOURCE, AudioServices, SearchableSource
from songray.errors import FetchError
from songray.library import Row
from songray.service.middlewares import AUDIO_BYTES
from songray.service.problems import unavailable

Result = TypeVar("Result")
NOT_FOUND_KINDS = ("no_preview", "no_match", "no_data", "no_location")
PATIENCE_SECONDS = 10.0  # after which a client is told to retry later


class ExternalSources:
    """Fetches previews, at most `at_once` of them. A fetch whose client has gone counts until it ends."""

    def __init__(self, services: AudioServices, at_once: int) -> None:
        self.services, self.at_once = services, at_once
        self._threads = ThreadPoolExecutor(at_once, "external")
        self._underway: set[asyncio.Future[Any]] = set()

    async def first_preview(self, source: SearchableSource, words: str) -> tuple[str, bytes]:
        """What `first_preview` returns. Raises HTTPException: 503 also where all threads are busy, or where
        the source takes longer than PATIENCE_SECONDS."""
        return await self._in_thread(source, first_preview, self.services, source, words)

    async def locate(self, track: Row) -> AudioLocation:
        """The location of a track's audio now. Raises HTTPException, as `first_preview`."""
        if stored := self.services.stored_location(track):
            return stored
        return await self._in_thread(track["source"], locate, self.services, track)

    async def _in_thread(self, source: str, function: Callable[..., Result], *arguments: Any) -> Result:
        if len(self._underway) >= self.at_once:
            raise unavailable("too many requests wait for external sources already")
        loop = asyncio.get_running_loop()
        fetched = loop.run_in_executor(self._threads, function, *arguments)
        self._underway.add(fetched)
        fetched.add_done_callback(self._end)
        await asyncio.wait([fetched], timeout=PATIENCE_SECONDS)  # does not cancel it
        if not fetched.done():
            detail = f"{source} has not answered within {PATIENCE_SECONDS:g} s"
            raise unavailable(detail, PATIENCE_SECONDS)
        return fetched.result()

    def _end(self, fetched: asyncio.Future[Any]) -> None:
        self._underway.discard(fetched)
        fetched.exception()  # asyncio would log one that nobody waits for any more


def first_preview(services: AudioServices, source: SearchableSource, words: str) -> tuple[str, bytes]:
    """Id and audio. Raises HTTPException: 404 where there is none, 502 or 503 where the source fails."""
    track = first_track(services.search(source, words), words)
    failure = f"the preview of {track.track_id} cannot be fetched"
    return track.track_id, run(fetch_preview(services, source, track), failure)


def locate(services: AudioServices, track: Row) -> AudioLocation:
    """Raises HTTPException: 404 where the catalogue has no audio, 502 or 503 where the source fails."""

    async def located() -> AudioLocation:
        async with web.session() as session:
            return await services.locate(track, session, DEFAULT_ISRC_SOURCE)

    return run(located(), f"the audio of {track['track_id']} cannot be located")


def run(request: Coroutine[Any, Any, Result], failure: str) -> Result:
    """The result of requests to a source, in a thread without an event loop. Raises HTTPException."""
    try:
        return asyncio.run(request)
    except FetchError as error:
        raise http_error(error) from error
    except (TimeoutError, aiohttp.ClientError) as error:
        raise HTTPException(502, f"{failure}: {error!r}") from error


def first_track(source: Source, words: str) -> Track:
    problems = []
    for _, contents in source.read(list(source.pages())):
        if contents.tracks:
            return contents.tracks[0]
        problems += [problem for problem in contents.problems if problem.kind != "no_data"]
    if problems:
        raise HTTPException(502, f"{source.name} failed: {problems[0].detail[:300]}")
    raise HTTPException(404, f"{source.name} finds nothing for {words!r}")


async def fetch_preview(services: AudioServices, source: SearchableSource, track: Track) -> bytes:
    row = {"location": track.location, "isrc": track.isrc, "source": source}
    async with web.session() as session:
        location = await services.locate(row, session, isrc_source="none")
        return await fetch(session, location.url, services.preview_hosts)


async def fetch(session: aiohttp.ClientSession, url: str, hosts: tuple[str, ...]) -> bytes:
    """The content of a URL on one of the hosts. Redirects are not followed, since they may lead to others."""
    host = urlsplit(url).hostname or ""
    if not any(host == allowed or host.endswith(f".{allowed}") for allowed in hosts):
        raise HTTPException(502, f"the preview is on {host!r}, which is none of {', '.join(hosts)}")
    async with session.get(url, allow_redirects=False) as response:
        web.check_status(response.status, f"the host {host}")
        content = b""
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > AUDIO_BYTES:
                raise HTTPException(502, f"the preview is larger than {AUDIO_BYTES:,} bytes")
        return content


def http_error(error: FetchError) -> HTTPException:
    if error.kind in NOT_FOUND_KINDS:
        return HTTPException(404, str(error))
    if error.retryable and error.retry_after_seconds:
        return unavailable(str(error), error.retry_after_seconds)
    return HTTPException(502, str(error))
