"""Reads a source, writes tracks, artists, playlists, the pages that it read, and the crawls that finished."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute

from songray.catalogue.catalog import VANISHED, CatalogWriter
from songray.catalogue.existing import TrackStatus
from songray.catalogue.frontier import Frontier
from songray.catalogue.sources.base import CompleteListing, Contents, Page, Source
from songray.catalogue.sources.reading import PIECES
from songray.cluster import connect
from songray.errors import InvalidOption, StageFailed
from songray.leases import Lease
from songray.library import Library, Row
from songray.stages import report_progress
from songray.summary import failed_share

PAGES_PER_TASK = 100  # a task requests its pages concurrently, and waits for the slowest
TRACK_STATUSES: tuple[TrackStatus, ...] = (
    "new", "changed", "unchanged", "completed", "duplicate", "removed", "gone",
)  # fmt: skip


@dataclass(frozen=True)
class CrawlConfig:
    max_tracks: int | None = None
    """Number of new tracks after which the crawl stops; the next crawl continues from there."""
    max_requests: int | None = None
    """Number of pages after which the crawl stops; the next crawl continues from there."""
    max_depth: int = 2
    """Number of links that are followed from the pages named by the source's options, such as the links from
    an artist to related artists."""
    refresh: bool = False
    """Read pages again whose changes cannot be detected without reading them: searches, artists, albums."""
    max_failed_share: float = 0.5
    """Exit with an error where more than this share of the requested pages fails."""

    def __post_init__(self) -> None:
        for name in ("max_tracks", "max_requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"{name} is {value}: must be at least 1")
        if self.max_depth < 0:
            raise InvalidOption(f"max_depth is {self.max_depth}: must not be negative")


@dataclass
class CrawlSummary:
    """What a crawl did. `counts` counts tracks by status, and pages as "read" (by this crawl), "existing"
    (read before) or "retryable" (failed, and read by the next crawl)."""

    source: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)  # by kind
    examples: dict[str, str] = field(default_factory=dict)  # the first problem of each kind
    stopped_by: str = ""  # the limit that stopped the crawl
    seconds: float = 0.0

    def __str__(self) -> str:
        count = self.counts
        pages = f"{count['read']} pages read, {count['existing']} read before"
        if count["retryable"]:
            pages += f", {count['retryable']} to be retried"
        tracks = ", ".join(f"{count[status]} {status}" for status in TRACK_STATUSES if count[status])
        text = f"crawl: {self.source}: {pages}; tracks: {tracks or 'none'} ({self.seconds:.1f} s)"
        problems = self.problems.most_common()
        lines = [f"{number} × {kind}: {self.examples[kind]}" for kind, number in problems]
        if self.stopped_by:
            lines.append(f"stopped by {self.stopped_by}: the next crawl continues from there")
        return "\n  ".join([text, *lines])

    def check(self, max_failed_share: float) -> None:
        """Raise StageFailed where too large a share of the pages failed: see `failed_share`."""
        failed, read, existing = (self.counts[name] for name in ("retryable", "read", "existing"))
        pages, share = failed_share(failed, failed + read, existing)
        if share > max_failed_share:
            raise StageFailed(
                f"{failed} of {pages} pages of {self.source} failed, more than the share of "
                f"{max_failed_share:g} that --max-failed-share allows:\n{self}\n"
                "run the crawl again to continue from there"
            )


def crawl(library: Library, source: Source, config: CrawlConfig) -> CrawlSummary:
    """Read the pages that are new or changed, on all nodes, and write their contents.

    A page counts as read once all of its contents are written: after a crawl that was killed, or stopped by a
    limit, the next one continues from there. Raises InvalidOption, Conflict where another process writes the
    catalogue's tables, or StageFailed where too many pages fail.
    """
    started = time.monotonic()
    with library.lease("tracks") as lease:
        run = CrawlRun(library, source, config, lease)
        if pages := run.next_pages():
            connect()
            with report_progress(run.progress):
                while pages:
                    for pieces in _read_pages(pages, source):
                        run.catalog.add(pieces)
                        if run.has_enough_tracks():
                            break
                    pages = run.next_pages()
        summary = run.finish()
    summary.seconds = time.monotonic() - started
    summary.check(config.max_failed_share)
    return summary


def _read_pages(pages: list[Page], source: Source) -> Iterator[pa.Table]:
    """The pieces of pages that Ray's workers read, in the schema PIECES, as they arrive."""
    import ray.data  # in this function: --help, and a crawl without a page to read, never load it

    rows = [dataclasses.asdict(page) for page in pages]
    return iter(
        ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / PAGES_PER_TASK))
        .map_batches(read_batch, fn_args=(source,), batch_size=None, batch_format="pyarrow")
        .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )


def read_batch(pages: pa.Table, source: Source) -> Iterator[pa.Table]:
    """Rows of pages → rows of their pieces, in the schema PIECES."""
    for page, contents in source.read([Page(**row) for row in pages.to_pylist()]):
        yield pa.Table.from_pylist([_piece(page, contents)], PIECES)


def _piece(page: Page, contents: Contents) -> Row:
    problems = [problem._asdict() for problem in contents.problems]
    row = {"page": page.name, "fingerprint": page.fingerprint}
    return row | dataclasses.asdict(contents) | {"problems": problems}


class CrawlRun:
    """One crawl within its limits: the pages to read next, and where their contents go."""

    def __init__(self, library: Library, source: Source, config: CrawlConfig, lease: Lease) -> None:
        self._source, self._config = source, config
        listed = list(source.pages())
        columns = ["source", "page", "fingerprint", "crawl", "links", "track_ids"]
        pages = library.table("pages").read(columns)
        number = (pa.compute.max(pages["crawl"]).as_py() or 0) + 1
        of_source = pages.filter(pa.compute.equal(pages["source"], source.name)).sort_by("crawl")
        crawls = library.table("crawls").read(["crawl"], pa.compute.field("source") == source.name)
        finished = pa.compute.max(crawls["crawl"]).as_py() or 0
        self._vanished = _vanished(source, of_source, listed)
        to_read_again = pa.array(_with_their_tracks(of_source, self._vanished), pa.string())
        is_to_read = pa.compute.is_in(of_source["page"], to_read_again)
        existing = of_source.filter(pa.compute.invert(is_to_read))
        self.frontier = Frontier(existing, finished, config.max_depth, config.refresh)
        self.frontier.add(listed)
        self.catalog = CatalogWriter(library, source, number, self.frontier, lease)
        self._requested = 0  # pages
        self._started = time.monotonic()

    def next_pages(self) -> list[Page]:
        """The pages to read next; none at the end of the crawl."""
        limit = self._config.max_requests
        if self.has_enough_tracks() or self._requested == limit:
            return []
        pages = self.frontier.unread()
        if limit is not None:
            pages = pages[: limit - self._requested]
        self._requested += len(pages)
        return pages

    def has_enough_tracks(self) -> bool:
        return self.catalog.counts["new"] >= (self._config.max_tracks or math.inf)

    def progress(self) -> str:
        counts, seconds = self.catalog.counts, time.monotonic() - self._started
        tracks = sum(counts[status] for status in TRACK_STATUSES)
        return (
            f"crawl: {counts['read']} of {self._requested} pages read, depth {self.frontier.depth}, "
            f"{counts['read'] / seconds:.1f}/s; {tracks} tracks, {counts['new']} of them new"
        )

    def finish(self) -> CrawlSummary:
        """Write what is left, and that the crawl has finished where no page has to be retried."""
        catalog, stopped_by = self.catalog, self._limit_reached()
        retryable = 0 if stopped_by else self._requested - catalog.counts["read"]
        if self._vanished and not stopped_by and not retryable:
            catalog.record_vanished(self._vanished)
        counts = catalog.counts + Counter(existing=self.frontier.skipped, retryable=retryable)
        if counts["retryable"]:
            catalog.write()
        else:
            options = dataclasses.asdict(self._source)  # type: ignore[call-overload]
            catalog.record_end(json.dumps(options, default=str))
        return CrawlSummary(self._source.name, counts, catalog.problems, catalog.examples, stopped_by)

    def _limit_reached(self) -> str:
        if self.has_enough_tracks():
            return f"--max-tracks {self._config.max_tracks}"
        if self._config.max_requests == self._requested:
            return f"--max-requests {self._config.max_requests}"
        return ""


def _vanished(source: Source, stored: pa.Table, listed: list[Page]) -> set[str]:
    """The names of stored pages that the source no longer has, where it can tell."""
    if not isinstance(source, CompleteListing):
        return set()
    newest = dict(zip(stored["page"].to_pylist(), stored["fingerprint"].to_pylist(), strict=True))
    return source.vanished([name for name, mark in newest.items() if mark != VANISHED], listed)


def _with_their_tracks(stored: pa.Table, pages: set[str]) -> list[str]:
    """The pages, and all others that hold one of their tracks, as equal files do."""
    if not pages:
        return []
    names, ids = stored["page"].to_pylist(), stored["track_ids"].to_pylist()
    tracks = {track for name, held in zip(names, ids, strict=True) if name in pages for track in held or []}
    return [name for name, held in zip(names, ids, strict=True) if name in pages or tracks & set(held or [])]
