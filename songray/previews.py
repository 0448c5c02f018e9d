"""Reads tracks, writes previews: the audio of each, or why there is none."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pyarrow as pa
import ray.data
import tenacity

from songray.library import TABLES, Library
from songray.stages import Summary, fill

SCHEMA = pa.schema(TABLES["previews"].columns)
PASSING_STATUSES = frozenset({408, 425, 429})  # and all of 500…599


@dataclass(frozen=True)
class DownloadConfig:
    total_seconds: float = 60.0
    """Deadline for one file, all its attempts together."""
    attempts: int = 3
    """Attempts at a file within one run, for failures that may pass."""
    max_bytes: int = 50_000_000
    """Larger files are refused."""
    downloads_per_worker: int = 16
    """Files in flight in one worker."""
    workers: int = 2
    """Worker processes; they wait more than they work, and claim no CPU."""
    rows_per_file: int = 256
    """The most tracks that are finished together, as one file; fewer where there is little to do."""
    max_failed_share: float = 0.5
    """Exit with an error when more than this share of the tracks of a run fails."""

    def __post_init__(self) -> None:
        for name in ("total_seconds", "attempts", "max_bytes", "downloads_per_worker", "workers"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: must be above 0")


class Failure(Exception):
    """Why there is no audio: `kind` is a class that a person can count."""

    def __init__(self, kind: str, detail: str, status: int | None = None, passing: bool = False) -> None:
        super().__init__(detail)
        self.kind, self.status, self.passing = kind, status, passing


def download(library: Library, config: DownloadConfig) -> Summary:
    """Fetch the previews of the tracks that have none yet, and note those that have none for good."""
    tracks, output = library.table("tracks"), library.table("previews")

    def plan(rows: ray.data.Dataset, tally: ray.actor.ActorHandle) -> ray.data.Dataset:
        return rows.map_batches(
            Downloader,
            fn_constructor_args=(config, tally),
            batch_size=config.downloads_per_worker,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=config.workers),
            num_cpus=0,
        )

    summary = fill("download", tracks, output, plan, config.rows_per_file, row_group_rows=16)
    summary.check(config.max_failed_share)
    return summary


class Downloader:
    """Worker: fetches a batch of tracks at once."""

    def __init__(self, config: DownloadConfig, tally: ray.actor.ActorHandle) -> None:
        self.config, self.tally = config, tally

    async def __call__(self, tracks: pa.Table) -> AsyncIterator[pa.Table]:
        rows, passing = await download_batch(tracks, self.config)
        if passing:
            await self.tally.add_again.remote(passing)
        yield rows


async def download_batch(tracks: pa.Table, config: DownloadConfig) -> tuple[pa.Table, list[str]]:
    """Rows of tracks → rows of previews, and the classes of the failures that may pass, which get no row."""
    headers = {"User-Agent": "songray (https://pypi.org/project/songray)"}
    async with aiohttp.ClientSession(headers=headers) as session:
        outcomes = await asyncio.gather(*(obtain(session, track, config) for track in tracks.to_pylist()))
    rows = [row for row in outcomes if isinstance(row, dict)]
    return pa.Table.from_pylist(rows, SCHEMA), [kind for kind in outcomes if isinstance(kind, str)]


async def obtain(
    session: aiohttp.ClientSession, track: dict[str, Any], config: DownloadConfig
) -> dict[str, Any] | str:
    """One track's row of previews; or only the class of its failure, where that may pass."""
    started = time.monotonic()
    row: dict[str, Any] = {name: track[name] for name in ("track_key", "track_id", "location")}
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Failure) and error.passing),
        stop=tenacity.stop_after_attempt(config.attempts),
        wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5),
        reraise=True,
    )
    try:
        async with asyncio.timeout(config.total_seconds):
            row |= await retrying(locate_and_fetch, session, track["location"], config.max_bytes)
    except TimeoutError:
        return "timeout"
    except Failure as failure:
        if failure.passing:
            return failure.kind
        row |= {"error": failure.kind, "detail": str(failure), "status": failure.status}
    attempts = retrying.statistics.get("attempt_number", 1)
    return row | {"attempts": attempts, "seconds": time.monotonic() - started}


async def locate_and_fetch(
    session: aiohttp.ClientSession, location: str | None, max_bytes: int
) -> dict[str, Any]:
    """Columns of a preview: a URL's bytes, or the size of a local file, which stays where it is."""
    if not location:
        raise Failure("no_preview", "the catalogue names no audio for it")
    if "://" in location:
        audio, status = await fetch(session, location, max_bytes)
        digest = hashlib.sha256(audio).hexdigest()
        return {"audio": audio, "status": status, "size_bytes": len(audio), "sha256": digest}
    if not os.path.isfile(location):
        raise Failure("missing", f"{location} is not there: crawl the folder again", passing=True)
    if not (size := os.path.getsize(location)):
        raise Failure("empty", f"{location} has no bytes")
    return {"size_bytes": size}


async def fetch(session: aiohttp.ClientSession, url: str, max_bytes: int) -> tuple[bytes, int]:
    """The body behind a URL, and its status; raises Failure."""
    try:
        async with session.get(url) as response:
            check_status(response.status, url)
            body = await response.content.read(max_bytes + 1)
            while len(body) <= max_bytes and (more := await response.content.read(max_bytes + 1 - len(body))):
                body += more
    except aiohttp.InvalidURL as error:
        raise Failure("bad_url", f"{url} is no URL: {error}") from error
    except aiohttp.ClientError as error:
        raise Failure("connection", f"{url}: {error}", passing=True) from error
    if len(body) > max_bytes:
        raise Failure("too_large", f"{url} has more than {max_bytes} bytes", response.status)
    if not body:
        raise Failure("empty", f"{url} answered without bytes", response.status)
    return body, response.status


def check_status(status: int, url: str) -> None:
    """Raise Failure unless the answer has a body to read."""
    if status != 200:
        passing = status in PASSING_STATUSES or status >= 500
        raise Failure(f"http_{status}", f"{url} answered {status}", status, passing)
