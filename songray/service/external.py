"""The first track that a source on the web finds, and its preview: from configured hosts alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from songray import web
from songray.catalogue.sources.base import Source, Track
from songray.catalogue.sources.deezer import DeezerApi, DeezerSource
from songray.catalogue.sources.itunes import ItunesSource
from songray.errors import FetchError
from songray.service.middleware import AUDIO_BYTES
from songray.service.problems import Refusal, overloaded


@dataclass(frozen=True)
class ExternalSources:
    deezer: DeezerApi = field(default_factory=DeezerApi)
    itunes_url: str = ItunesSource.itunes_url
    """Root of Apple's API."""
    preview_hosts: tuple[str, ...] = ("dzcdn.net", "itunes.apple.com", "mzstatic.com")
    """Hosts, and those below them, from which previews may be fetched."""

    async def first(self, source: str, words: str) -> tuple[str, bytes]:
        """Id and audio. Raises Refusal where there is none, or the source does not answer as it should."""
        sources: dict[str, Source] = {
            "deezer": DeezerSource(search=(words,), api=self.deezer),
            "itunes": ItunesSource(search=(words,), itunes_url=self.itunes_url),
        }
        track = await asyncio.to_thread(first_of, sources[source], words)
        try:
            async with web.session() as session:
                url = await self._url(session, track)
                return track.track_id, await fetch(session, url, self.preview_hosts)
        except FetchError as failure:
            raise refusal(failure) from failure
        except (TimeoutError, aiohttp.ClientError) as error:
            raise Refusal(502, f"the preview of {track.track_id} cannot be fetched: {error!r}") from error

    async def _url(self, session: aiohttp.ClientSession, track: Track) -> str:
        location = track.location or ""
        if location.startswith("deezer:"):
            return (await self.deezer.preview(session, location.removeprefix("deezer:"))).url
        return location


def first_of(source: Source, words: str) -> Track:
    problems = []
    for _, contents in source.read(list(source.pages())):
        if contents.tracks:
            return contents.tracks[0]
        problems += [problem for problem in contents.problems if not problem.startswith("no_data")]
    if problems:
        raise Refusal(502, f"{source.name} did not answer as it should: {problems[0][:300]}")
    raise Refusal(404, f"{source.name} finds nothing for {words!r}")


async def fetch(session: aiohttp.ClientSession, url: str, hosts: tuple[str, ...]) -> bytes:
    """The bytes behind a URL of one of the hosts; redirects are not followed, for they lead elsewhere."""
    host = urlsplit(url).hostname or ""
    if not url:
        raise Refusal(404, "the track that was found has no preview")
    if not any(host == allowed or host.endswith(f".{allowed}") for allowed in hosts):
        raise Refusal(502, f"the preview lies on {host!r}, which is none of {', '.join(hosts)}")
    async with session.get(url, allow_redirects=False) as response:
        web.check_status(response.status, f"the host {host}")
        body = b""
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > AUDIO_BYTES:
                raise Refusal(502, f"the preview is larger than {AUDIO_BYTES:,} bytes")
        return body


def refusal(failure: FetchError) -> Refusal:
    if failure.kind in ("no_preview", "no_match", "no_data"):
        return Refusal(404, str(failure))
    if failure.retryable and failure.retry_after_seconds:
        return overloaded(str(failure), failure.retry_after_seconds)
    return Refusal(502, str(failure))
