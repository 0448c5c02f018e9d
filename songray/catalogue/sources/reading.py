"""The two ways to read pages: one after the other from files, or concurrently from a service on the web."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from songray import web
from songray.catalogue.sources.base import Contents, Page, Problem
from songray.errors import CorruptData, FetchError

if TYPE_CHECKING:
    import aiohttp


def read_sequentially(
    pages: Sequence[Page], read: Callable[[Page], Iterator[Contents]]
) -> Iterator[tuple[Page, Contents]]:
    """One page after the other, for sources that are bound by CPU or disk."""
    for page in pages:
        try:
            for contents in read(page):
                yield page, contents
            yield page, Contents(finished=True)
        except (OSError, ValueError, CorruptData) as error:
            problem = Problem("unreadable", f"{page.name}: {error}")
            yield page, Contents(problems=[problem], finished=True)


def read_concurrently(
    pages: Sequence[Page], fetch: Callable[[Page, aiohttp.ClientSession], Awaitable[Contents]]
) -> Iterator[tuple[Page, Contents]]:
    """All pages concurrently, each by one request to a service on the web. A retryable failure leaves its
    page unread, for the next crawl; a permanent one is a problem of the page."""
    yield from asyncio.run(_fetch_all(pages, fetch))


async def _fetch_all(
    pages: Sequence[Page], fetch: Callable[[Page, aiohttp.ClientSession], Awaitable[Contents]]
) -> list[tuple[Page, Contents]]:
    async def fetch_page(page: Page) -> tuple[Page, Contents]:
        try:
            return page, replace(await fetch(page, session), finished=True)
        except FetchError as error:
            problem = Problem(error.kind, f"{page.name}: {error}")
            return page, Contents(problems=[problem], finished=not error.retryable)

    async with web.session() as session:
        return await asyncio.gather(*(fetch_page(page) for page in pages))
