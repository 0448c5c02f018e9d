"""Reads tracks, writes previews: the audio of each, or why there is none."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import ipaddress
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import av
import numpy as np
import pyarrow as pa
import ray.data

from songray import web
from songray.catalogue.sources.deezer import DeezerApi
from songray.errors import FetchError
from songray.library import TABLES, Library, Table
from songray.stages import Summary, fill

SCHEMA = pa.schema(TABLES["previews"].columns)
ROWS_AT_ONCE = 16  # handed on together
PUBLIC_SOURCES = ("spotify", "deezer", "itunes")  # whose links must not lead into a private network
PRIVATE = "it leads to a private address"

Row = dict[str, Any]
Outcome = Row | str  # a row of previews; or the class of a failure that may pass


@dataclass(frozen=True)
class DownloadConfig:
    total_seconds: float = 60.0
    """Deadline for one file, all its attempts together."""
    connect_seconds: float = 10.0
    """Deadline for a connection."""
    first_byte_seconds: float = 20.0
    """Deadline for the head of an answer, from when it was asked for."""
    attempts: int = 3
    """Attempts at a file within one run, for failures that may pass."""
    max_bytes: int = 50_000_000
    """Larger files are refused."""
    max_redirects: int = 5
    """More redirects than that are refused."""
    host_requests_per_second: int = 100
    """The most that one host is asked for, by all workers together."""
    downloads_per_worker: int = 32
    """Files in flight in one worker."""
    workers: int = 4
    """Worker processes; they wait more than they work, and claim no CPU."""
    rows_per_file: int = 256
    """The most tracks that are finished together, as one file; fewer where there is little to do. A worker
    holds the audio of so many in memory."""
    isrc_source: Literal["deezer", "none"] = "deezer"
    """Where the audio of tracks comes from that have an ISRC and no location."""
    deezer: DeezerApi = field(default_factory=DeezerApi)
    private_addresses: bool = False
    """Let links of public catalogues lead to private addresses: to a mirror of your own."""
    max_failed_share: float = 0.5
    """Exit with an error when more than this share of the tracks of a run fails."""

    def __post_init__(self) -> None:
        positive = ("total_seconds", "connect_seconds", "first_byte_seconds", "attempts", "max_bytes",
                    "host_requests_per_second", "downloads_per_worker", "workers")  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: must be above 0")

    @property
    def host_limit(self) -> web.Limit:
        return web.Limit(self.host_requests_per_second, 1.0, longest_wait_seconds=self.total_seconds)


def download(library: Library, config: DownloadConfig) -> Summary:
    """Fetch the previews of the tracks that have none yet, and note those that have none for good."""
    tracks, output = library.table("tracks"), library.table("previews")

    def plan(rows: ray.data.Dataset, tally: ray.actor.ActorHandle, block_rows: int) -> ray.data.Dataset:
        blocks = rows.repartition(target_num_rows_per_block=block_rows, strict=True)
        return blocks.map_batches(
            download_batch,
            fn_args=(config, tally),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=config.workers),
            num_cpus=0,
        )

    summary = fill("download", tracks, output, plan, config.rows_per_file, 16, config.workers)
    if summary.done:
        summary.remarks.append(f"{repeated(output)} tracks have the very audio of another one")
    summary.check(config.max_failed_share)
    return summary


def repeated(previews: Table) -> int:
    """How many tracks have audio whose bytes another track has too. Memory: 8 bytes a track."""
    parts = [np.empty(0, np.int64)]
    for batch in previews.scan(["sha256"], previews.files()):
        digests = batch.record_batch["sha256"].drop_null().to_pylist()
        parts.append(np.frombuffer(b"".join(digest[:8] for digest in digests), np.int64))
    digests = np.concatenate(parts)
    return int(digests.size - np.unique(digests).size)


def download_batch(
    tracks: pa.Table, config: DownloadConfig, tally: ray.actor.ActorHandle
) -> Iterator[pa.Table]:
    """Rows of tracks → rows of previews, as they come; failures that may pass get none, but are counted."""
    with closing(asyncio.new_event_loop()) as loop:  # asyncio.Runner spells out each result: ms a file
        outcomes = Downloads(config).outcomes(tracks.to_pylist())
        while some := loop.run_until_complete(_next(outcomes)):
            rows = [row for row in some if isinstance(row, dict)]
            ray.get(tally.add.remote(len(rows), [kind for kind in some if isinstance(kind, str)]))
            yield _table(rows)


def _table(rows: list[Row]) -> pa.Table:
    """The rows; their audio is copied once, while building the column cell by cell copies it often."""
    audio = [row.pop("audio", None) for row in rows]
    ends = np.cumsum([0, *(len(body or b"") for body in audio)])
    valid = np.packbits(np.array([body is not None for body in audio], bool), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends), pa.py_buffer(b"".join(filter(None, audio)))]
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), buffers)
    position = SCHEMA.get_field_index("audio")
    return pa.Table.from_pylist(rows, SCHEMA).set_column(position, SCHEMA.field(position), column)


async def _next(outcomes: AsyncIterator[Outcome]) -> list[Outcome]:
    """The next ROWS_AT_ONCE, or what is left."""
    some: list[Outcome] = []
    async for outcome in outcomes:
        some.append(outcome)
        if len(some) == ROWS_AT_ONCE:
            break
    return some


class Downloads:
    """The files that one worker fetches together."""

    def __init__(self, config: DownloadConfig) -> None:
        self.config = config
        self._in_flight = asyncio.Semaphore(config.downloads_per_worker)
        self._turns = web.HostLimits("previews", config.host_limit)

    async def outcomes(self, tracks: list[Row]) -> AsyncIterator[Outcome]:
        """Of each track, in the order in which they come."""
        timeout = aiohttp.ClientTimeout(sock_connect=self.config.connect_seconds)
        headers = {"User-Agent": web.USER_AGENT}
        async with AsyncExitStack() as stack:
            self._api = await stack.enter_async_context(web.session())
            self._sessions = {
                public: await stack.enter_async_context(
                    aiohttp.ClientSession(connector=_connector(public), timeout=timeout, headers=headers)
                )
                for public in (False, True)
            }
            for outcome in asyncio.as_completed([self._in_turn(track) for track in tracks]):
                yield await outcome

    async def _in_turn(self, track: Row) -> Outcome:
        async with self._in_flight:
            return await self.obtain(track)

    async def obtain(self, track: Row) -> Outcome:
        """One track's row of previews; or only the class of its failure, where that may pass."""
        started = time.monotonic()
        row: Row = {name: track[name] for name in ("track_key", "track_id", "location")}
        retrying = web.retrying(self.config.attempts, self.config.host_limit)
        try:
            async with asyncio.timeout(None) as deadline:  # it runs from the first request on: see _body
                row |= await retrying(self.locate_and_fetch, track, deadline)
        except TimeoutError:
            return "timeout"
        except FetchError as failure:
            if failure.retryable:
                return failure.kind
            row |= {"error": failure.kind, "detail": str(failure), "status": failure.status}
        attempts = retrying.statistics.get("attempt_number", 1)
        return row | {"attempts": attempts, "seconds": time.monotonic() - started}

    async def locate_and_fetch(self, track: Row, deadline: asyncio.Timeout) -> Row:
        """Columns of a preview: a URL's bytes, or the size of a local file, which stays where it is."""
        location, isrc = track["location"] or "", track["isrc"]
        if not location and isrc and self.config.isrc_source == "deezer":
            location = f"deezer:isrc:{isrc}"
        if location.startswith("deezer:"):
            return await self.fetch_from_deezer(location.removeprefix("deezer:"), deadline)
        if not location:
            detail = "the catalogue names no audio for it, nor an ISRC to find it by"
            raise FetchError("no_location", detail, retryable=True)  # it may do so tomorrow
        if "://" in location:
            return await self.fetch(location, track["source"] in PUBLIC_SOURCES, deadline)
        return _look_at(location)

    async def fetch_from_deezer(self, reference: str, deadline: asyncio.Timeout) -> Row:
        """Links to previews live for minutes: this one is asked for now, and once more if it is late."""
        for _ in range(2):
            preview = await self.config.deezer.preview(self._api, reference)
            try:
                fetched = await self.fetch(preview.url, True, deadline)
            except FetchError as failure:
                if failure.status != 403:
                    raise
                late = failure
            else:
                return fetched | {"audio_id": preview.track_id}
        raise FetchError("expired", f"two links in succession had expired: {late}", 403) from late

    async def fetch(self, url: str, public: bool, deadline: asyncio.Timeout) -> Row:
        """Columns of the preview behind a URL; raises FetchError."""
        session = self._sessions[public and not self.config.private_addresses]
        body, status = await self._body(url, session, deadline)
        if not body:
            raise FetchError("empty", f"{url} answered without bytes", status)
        if not is_audio(body):
            raise FetchError("not_audio", f"{url} answered with {body[:40]!r}…, which is no audio", status)
        digest = hashlib.sha256(body).digest()
        return {"audio": body, "location": url, "status": status, "size_bytes": len(body), "sha256": digest}

    async def _body(
        self, url: str, session: aiohttp.ClientSession, deadline: asyncio.Timeout
    ) -> tuple[bytes, int]:
        host = urlsplit(url).netloc
        await self._turns.take(host)
        if deadline.when() is None:
            deadline.reschedule(asyncio.get_running_loop().time() + self.config.total_seconds)
        try:
            async with asyncio.timeout(self.config.first_byte_seconds) as first_byte:
                redirects = self.config.max_redirects + 1  # where aiohttp stops
                async with session.get(url, max_redirects=redirects) as response:
                    first_byte.reschedule(None)
                    web.check_status(response.status, url, response.headers.get("Retry-After"))
                    return await _read(response, self.config.max_bytes), response.status
        except FetchError as failure:
            await self._turns.close(host, failure.retry_after_seconds)
            raise
        except TimeoutError as error:
            raise FetchError("no_answer", f"{url} did not begin to answer in time", retryable=True) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise FetchError("bad_url", f"{url} is no URL: {error}") from error
        except aiohttp.TooManyRedirects as error:
            raise FetchError(
                "redirects", f"{url} redirects more than {self.config.max_redirects} times"
            ) from error
        except aiohttp.ClientError as error:
            if PRIVATE in str(error):
                raise FetchError("private_address", f"{url}: {PRIVATE}") from error
            raise FetchError("connection", f"{url}: {error}", retryable=True) from error


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, in as many pieces as it comes in; raises FetchError where it is too large."""
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise FetchError("too_large", f"{response.url} has more than {max_bytes} bytes", response.status)
    return b"".join(pieces)


def _look_at(path: str) -> Row:
    if not os.path.isfile(path):
        raise FetchError("missing", f"{path} is not there: crawl the folder again", retryable=True)
    if not (size := os.path.getsize(path)):
        raise FetchError("empty", f"{path} has no bytes")
    return {"size_bytes": size}


def is_audio(body: bytes) -> bool:
    """Whether the bytes hold a stream of audio, whatever was said of them."""
    try:
        little = {"probesize": "4096"}  # by default it decodes seconds of what is not compressed
        with av.open(io.BytesIO(body), metadata_errors="ignore", options=little) as container:
            return len(container.streams.audio) > 0
    except (av.FFmpegError, ValueError):
        return False


def _connector(public: bool) -> aiohttp.TCPConnector:
    """Connections that remember names; those of public catalogues never lead to a private address, by
    whatever name or redirect they come to it."""
    return aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, socket_factory=_public_socket if public else None)


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address
    if not ipaddress.ip_address(host.split("%")[0]).is_global:
        raise OSError(errno.EACCES, PRIVATE)
    return socket.socket(family, kind, protocol)
