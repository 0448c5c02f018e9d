"""Fetches the audio of tracks over HTTP within deadlines, rate limits and a bound on its size."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import ipaddress
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from songray import web
from songray.catalogue.sources.registry import DEFAULT_ISRC_SOURCE, AudioServices, IsrcSource
from songray.errors import FetchError, InvalidOption
from songray.library import Row
from songray.media import AudioFile, open_container

if TYPE_CHECKING:  # imported in functions: --help needs the options above them only
    import aiohttp

PROBE_SECONDS = 5.0  # deadline for looking into a downloaded file, which takes about a millisecond
PRIVATE = "it leads to a private address"

Outcome = Row | str  # a row of previews, or the class of a failure that the next run retries


@dataclass(frozen=True)
class FetchConfig:
    total_seconds: float = 60.0
    """Deadline for one file, all its attempts together, in seconds."""
    connect_seconds: float = 10.0
    """Deadline for a connection, in seconds."""
    first_byte_seconds: float = 20.0
    """Deadline for the head of a response, in seconds from the request."""
    attempts: int = 3
    """Attempts at a file within one run, for failures that are retryable."""
    max_bytes: int = 50_000_000
    """The largest file that is downloaded, in bytes."""
    max_redirects: int = 5
    """The most redirects that are followed for one file."""
    host_requests_per_second: int = 100
    """The most requests to one host, for all workers together."""
    downloads_per_worker: int = 32
    """Concurrent downloads of one worker."""
    isrc_source: IsrcSource = DEFAULT_ISRC_SOURCE
    """Service that provides the audio of tracks that have an ISRC and no location."""
    services: AudioServices = field(default_factory=AudioServices)
    private_addresses: bool = False
    """Allow links of public catalogues to lead to private addresses, such as a mirror."""

    def __post_init__(self) -> None:
        positive = ("total_seconds", "connect_seconds", "first_byte_seconds", "attempts", "max_bytes",
                    "host_requests_per_second", "downloads_per_worker")  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise InvalidOption(f"{name} is {getattr(self, name)}: must be above 0")

    @property
    def host_limit(self) -> web.Limit:
        return web.Limit(self.host_requests_per_second, 1.0, longest_wait_seconds=self.total_seconds)


class Fetcher:
    """The concurrent downloads of one worker."""

    def __init__(self, config: FetchConfig, removed: Set[str] = frozenset()) -> None:
        """`removed` are the ids of tracks whose audio is fetched for no other track either."""
        self.config, self._removed = config, removed
        self._slots = asyncio.Semaphore(config.downloads_per_worker)
        self._limits = web.HostLimits("previews", config.host_limit)

    async def outcomes(self, tracks: list[Row]) -> AsyncIterator[Outcome]:
        """One outcome for each track, in the order in which they finish."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=self.config.connect_seconds)
        headers = {"User-Agent": web.USER_AGENT}
        async with AsyncExitStack() as stack:
            self._service_session = await stack.enter_async_context(web.session())
            self._sessions = {
                is_public: await stack.enter_async_context(
                    aiohttp.ClientSession(connector=_connector(is_public), timeout=timeout, headers=headers)
                )
                for is_public in (False, True)
            }
            for outcome in asyncio.as_completed([self._fetch_in_slot(track) for track in tracks]):
                yield await outcome

    async def _fetch_in_slot(self, track: Row) -> Outcome:
        async with self._slots:
            return await self.fetch(track)

    async def fetch(self, track: Row) -> Outcome:
        """The row of previews of one track, or only the class of its failure where that is retryable."""
        started = time.monotonic()
        row: Row = {name: track[name] for name in ("track_key", "track_id", "location")}
        retrying = web.retrying(self.config.attempts, self.config.host_limit)
        try:
            async with asyncio.timeout(None) as deadline:  # starts with the first request: see _body
                row |= await retrying(self._locate_and_fetch, track, deadline)
        except TimeoutError:
            return "timeout"
        except FetchError as error:
            if error.retryable:
                return error.kind
            row |= {"error": error.kind, "detail": str(error), "status": error.status}
        attempts = retrying.statistics.get("attempt_number", 1)
        return row | {"attempts": attempts, "seconds": time.monotonic() - started}

    async def _locate_and_fetch(self, track: Row, deadline: asyncio.Timeout) -> Row:
        """Columns of a preview. A link that expires is located just before the download, and once more where
        it has expired already."""
        services, isrc_source = self.config.services, self.config.isrc_source
        location = await services.locate(track, self._service_session, isrc_source)
        if location.audio_id in self._removed:
            raise FetchError("removed", "its audio is that of a track that was removed")
        if "://" not in location.url:
            if location.is_public:
                detail = f"{location.url} is no URL, and a public catalogue names no file of this machine"
                raise FetchError("bad_url", detail)
            return _file_columns(location.url)
        try:
            columns = await self._fetch_url(location.url, location.is_public, deadline)
        except FetchError as error:
            if error.status != 403 or not location.expires:
                raise
            location = await services.locate(track, self._service_session, isrc_source)
            columns = await self._fetch_again(location.url, location.is_public, deadline)
        return columns | ({"audio_id": location.audio_id} if location.audio_id else {})

    async def _fetch_again(self, url: str, is_public: bool, deadline: asyncio.Timeout) -> Row:
        try:
            return await self._fetch_url(url, is_public, deadline)
        except FetchError as error:
            if error.status != 403:
                raise
            raise FetchError("expired", f"two links in succession had expired: {error}", 403) from error

    async def _fetch_url(self, url: str, is_public: bool, deadline: asyncio.Timeout) -> Row:
        """Columns of the preview behind a URL. Raises FetchError."""
        session = self._sessions[is_public and not self.config.private_addresses]
        body, status = await self._body(url, session, deadline)
        if not body:
            raise FetchError("empty", f"{url} answered with an empty body", status)
        async with asyncio.timeout(PROBE_SECONDS):  # the thread of a probe that hangs is left behind
            is_recognised = await asyncio.to_thread(is_audio, body)
        if not is_recognised:
            raise FetchError("not_audio", f"{url} answered with {body[:40]!r}…, which is no audio", status)
        digest = hashlib.sha256(body).digest()
        return {"audio": body, "location": url, "status": status, "size_bytes": len(body), "sha256": digest}

    async def _body(
        self, url: str, session: aiohttp.ClientSession, deadline: asyncio.Timeout
    ) -> tuple[bytes, int]:
        import aiohttp

        host = _host(url)
        await self._limits.acquire(host)
        if deadline.when() is None:
            deadline.reschedule(asyncio.get_running_loop().time() + self.config.total_seconds)
        try:
            async with asyncio.timeout(self.config.first_byte_seconds) as first_byte:
                redirects = self.config.max_redirects + 1  # aiohttp stops at this one
                async with session.get(url, max_redirects=redirects) as response:
                    first_byte.reschedule(None)
                    web.check_status(response.status, url, response.headers.get("Retry-After"))
                    return await _read(response, self.config.max_bytes), response.status
        except FetchError as error:
            await self._limits.pause(host, error.retry_after_seconds)
            raise
        except TimeoutError as error:
            raise FetchError("no_answer", f"{url} did not start to answer in time", retryable=True) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise _fetch_error(url, error, self.config.max_redirects) from error


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError as error:
        raise FetchError("bad_url", f"{url} is no URL: {error}") from error


def _fetch_error(url: str, error: aiohttp.ClientError | ValueError, max_redirects: int) -> FetchError:
    import aiohttp

    # ValueError: aiohttp's InvalidURL, or a host that cannot be a name of the DNS
    if isinstance(error, (ValueError, aiohttp.NonHttpUrlClientError)):
        return FetchError("bad_url", f"{url} is no URL: {error}")
    if isinstance(error, aiohttp.TooManyRedirects):
        return FetchError("redirects", f"{url} redirects more than {max_redirects} times")
    if PRIVATE in str(error):
        return FetchError("private_address", f"{url}: {PRIVATE}")
    return FetchError("connection", f"{url}: {error}", retryable=True)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body of a response. Raises FetchError where it is too large."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise FetchError("too_large", f"{response.url} has more than {max_bytes} bytes", response.status)
    return b"".join(chunks)


def _file_columns(path: str) -> Row:
    """Columns of the preview of a local file, which is read where it is."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        state = None
    if state is None or not stat.S_ISREG(state.st_mode):
        raise FetchError("missing", f"{path} does not exist: crawl the folder again", retryable=True)
    if not state.st_size:
        raise FetchError("empty", f"{path} has no bytes")
    return {"size_bytes": state.st_size}


def is_audio(body: bytes) -> bool:
    """Whether the bytes contain an audio stream, whatever their headers say."""
    try:
        # The default probe size decodes seconds of uncompressed audio.
        with open_container(AudioFile(io.BytesIO(body)), probesize="4096") as container:
            return len(container.streams.audio) > 0
    except Exception:  # whatever PyAV raises of the bytes
        return False


def _connector(is_public: bool) -> aiohttp.TCPConnector:
    """Connections with a DNS cache. Those of public catalogues never reach a private address, whatever name
    or redirect leads there."""
    import aiohttp

    factory = _public_socket if is_public else None
    return aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, socket_factory=factory)


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address
    if not ipaddress.ip_address(host.split("%")[0]).is_global:
        raise OSError(errno.EACCES, PRIVATE)
    return socket.socket(family, kind, protocol)
