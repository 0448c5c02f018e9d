"""Which pages of a source are still to be read: breadth first from where it begins, along stored links."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from songray.catalogue.sources.base import Page


class Frontier:
    """Walks the links of the pages that were read before, and hands out those that were not.

    A page is stored with the links that lead nearer to a page than those before it in the same walk: that is
    enough to find every page again. `read_before` is the pages table of one source, oldest crawl first;
    `finished_crawl` the number of the last crawl that came to its end.
    Memory: some 500 bytes a page.
    """

    def __init__(self, read_before: pa.Table, finished_crawl: int, max_depth: int, refresh: bool) -> None:
        self._known = {name: row for row, name in enumerate(read_before["page"].to_pylist())}  # the newest
        self._read_before = read_before
        self._finished_crawl, self._max_depth, self._refresh = finished_crawl, max_depth, refresh
        self._depth: dict[str, int] = {}  # of each page met
        self._levels: defaultdict[int, list[Page]] = defaultdict(list)
        self.depth = 0  # of the pages handed out last
        self.skipped = 0  # pages that did not need to be read

    def meet(self, pages: Iterable[Page], depth: int = 0) -> list[Page]:
        """Take note of pages; those that were not met before, or only farther away."""
        new = []
        for page in pages:
            if depth + page.step < self._depth.get(page.name, sys.maxsize):
                self._depth[page.name] = depth + page.step
                self._levels[depth + page.step].append(page)
                new.append(page)
        return new

    def follow(self, page: str, links: Iterable[Page]) -> list[Page]:
        """Take note of where a page leads that was handed out; those links that are worth storing."""
        return self.meet(links, self._depth[page])

    def unread(self) -> list[Page]:
        """The pages to read next, all at one depth; none where the walk has come to its end."""
        while self._levels and min(self._levels) <= self._max_depth:
            self.depth = min(self._levels)
            pages = self._levels.pop(self.depth)
            unread = []
            for page in pages:
                if self._depth[page.name] < self.depth:
                    continue  # it was met again, nearer
                if self._is_read(page):
                    self.skipped += 1
                    self.follow(page.name, self._stored_links(page))
                else:
                    unread.append(page)
            if unread:
                return unread
        return []

    def _is_read(self, page: Page) -> bool:
        row = self._known.get(page.name)
        if row is None:
            return False
        if page.fingerprint is None or (self._refresh and page.fingerprint == ""):
            crawl: int = self._read_before["crawl"][row].as_py()
            return crawl > self._finished_crawl
        fingerprint: str = self._read_before["fingerprint"][row].as_py()
        return fingerprint == page.fingerprint

    def _stored_links(self, page: Page) -> list[Page]:
        return [Page(**link) for link in self._read_before["links"][self._known[page.name]].as_py() or []]
