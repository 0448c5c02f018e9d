"""Decides which pages of a source are read next: breadth first from its start, along stored links."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Set

import pyarrow as pa

from songray.catalogue.sources.base import Page


class Frontier:
    """Follows the stored links of pages that were read before, and returns the pages that were not.

    A page is stored with those of its links that shorten the distance to a page, compared with the pages
    before it in the same crawl: they suffice to reach every page again. `stored` is the pages table of one
    source, oldest crawl first; `finished_crawl` is the number of the last crawl that finished.
    Memory: some 500 bytes a page.
    """

    def __init__(self, stored: pa.Table, finished_crawl: int, max_depth: int, refresh: bool) -> None:
        self._newest_row = {name: row for row, name in enumerate(stored["page"].to_pylist())}
        self._stored = stored
        self._finished_crawl, self._max_depth, self._refresh = finished_crawl, max_depth, refresh
        self._depth: dict[str, int] = {}  # of each page that a link leads to
        self._levels: defaultdict[int, list[Page]] = defaultdict(list)
        self.depth = 0  # of the pages returned last
        self.skipped = 0  # pages that need not be read

    def add(self, pages: Iterable[Page], depth: int = 0) -> list[Page]:
        """Add pages; returns those that are new, or nearer than before."""
        added = []
        for page in pages:
            if depth + page.step < self._depth.get(page.name, sys.maxsize):
                self._depth[page.name] = depth + page.step
                self._levels[depth + page.step].append(page)
                added.append(page)
        return added

    def follow(self, page: str, links: Iterable[Page]) -> list[Page]:
        """Add the links of a page; returns those to be stored."""
        return self.add(links, self._depth[page])

    def unread(self) -> list[Page]:
        """The pages to read next, all at one depth; none at the end of the crawl."""
        while self._levels and min(self._levels) <= self._max_depth:
            self.depth = min(self._levels)
            unread = []
            for page in self._levels.pop(self.depth):
                if self._depth[page.name] < self.depth:
                    continue  # a later link to it was shorter
                if self._is_read(page):
                    self.skipped += 1
                    self.follow(page.name, self._stored_links(page))
                else:
                    unread.append(page)
            if unread:
                return unread
        return []

    def _is_read(self, page: Page) -> bool:
        row = self._newest_row.get(page.name)
        if row is None:
            return False
        if page.fingerprint is None or (self._refresh and page.fingerprint == ""):
            crawl: int = self._stored["crawl"][row].as_py()
            return crawl > self._finished_crawl
        fingerprint: str = self._stored["fingerprint"][row].as_py()
        return fingerprint == page.fingerprint

    def _stored_links(self, page: Page) -> list[Page]:
        return [Page(**link) for link in self._stored["links"][self._newest_row[page.name]].as_py() or []]


def references(source: str, track_ids: Iterable[str]) -> Set[str]:
    """The ids without their source, "123" of "<source>:123", of those that are the source's."""
    prefix = f"{source}:"
    return {track_id.removeprefix(prefix) for track_id in track_ids if track_id.startswith(prefix)}


def page_without(name: str, removed: Set[str]) -> str | None:
    """The name of a page without removed tracks, given by their references; None for the page of one alone.

    Some pages are requests for tracks by id: "track/<id>" and "tracks?ids=<id>,<id>".
    """
    if name.startswith("track/"):
        return None if name.removeprefix("track/").partition("?")[0] in removed else name
    if not name.startswith("tracks?ids="):
        return name
    ids = [one for one in name.removeprefix("tracks?ids=").split(",") if one not in removed]
    return f"tracks?ids={','.join(ids)}" if ids else None
