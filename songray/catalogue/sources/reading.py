"""The two ways to read pages: one after the other from files, or concurrently from a service on the web.

Both hand on only what tables can hold; any other item, and whatever a reader raises, is a problem of its
page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from songray import web
from songray.catalogue.sources.base import (
    Artist,
    Contents,
    Page,
    PlaylistEntry,
    Problem,
    RelatedArtist,
    Track,
)
from songray.errors import FetchError, SongrayError
from songray.tables import TABLES

if TYPE_CHECKING:
    import aiohttp

Item = TypeVar("Item")


def _struct(record: type[Any], table: str, **more: pa.DataType) -> pa.DataType:
    types = {**TABLES[table].columns, **more}
    return pa.struct({column.name: types[column.name] for column in fields(record)})


ITEMS = {
    "tracks": _struct(Track, "tracks", audio_version=pa.string()),
    "artists": _struct(Artist, "artists"),
    "playlist_entries": _struct(PlaylistEntry, "playlists"),
    "related_artists": _struct(RelatedArtist, "related_artists"),
    "pages": TABLES["pages"].columns["links"].value_type,
}
PIECES = pa.schema(  # pieces of pages, as a reader hands them on: one row for each Contents
    {"page": pa.string(), "fingerprint": pa.string()}
    | {name: pa.list_(kind) for name, kind in ITEMS.items()}
    | {"problems": TABLES["pages"].columns["page_problems"], "finished": pa.bool_()}
)


# Raised by reading data of an unexpected shape
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)
REASON = ": "  # in a fingerprint, between the kind of problem and a sentence: see unusable_page


def unusable_page(name: str, kind: str, reason: str) -> Page:
    """A page that stands for a file or folder that cannot be read, and contains that problem alone. It is
    read again when the reason changes."""
    return Page(name, f"{kind}{REASON}{reason}")


def read_sequentially(
    pages: Sequence[Page], read: Callable[[Page], Iterator[Contents]]
) -> Iterator[tuple[Page, Contents]]:
    """One page after the other, for sources that are bound by CPU or disk. An error of the storage leaves its
    page unread, for the next crawl; any other is a problem of the page."""
    for page in pages:
        kind, is_unusable, reason = (page.fingerprint or "").partition(REASON)
        if is_unusable:
            yield page, Contents(problems=[_problem(kind, f"{page.name}: {reason}")], finished=True)
            continue
        try:
            for contents in read(page):
                yield page, storable(page, contents)
            yield page, Contents(finished=True)
        except MemoryError:
            raise
        except Exception as error:
            is_of_storage = isinstance(error, OSError) and error.errno is not None
            problem = _problem("unreadable", f"{page.name}: {_words(error)}")
            yield page, Contents(problems=[problem], finished=not is_of_storage)


def each_valid(
    page: Page, contents: Contents, items: Sequence[Any], read: Callable[[Any], Item], first: int = 0
) -> Iterator[tuple[int, Item]]:
    """The position of each item of a list, from `first` on, and what `read` makes of it. An item of which it
    raises one of MALFORMED is a problem of the contents instead."""
    for position, item in enumerate(items, first):
        try:
            result = read(item)
        except MALFORMED as error:
            contents.problems.append(Problem("bad_item", f"item {position} of {page.name}: {error!r}"))
            continue
        yield position, result


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
            return page, replace(storable(page, await fetch(page, session)), finished=True)
        except FetchError as error:
            problem = _problem(error.kind, f"{page.name}: {error}")
            return page, Contents(problems=[problem], finished=not error.retryable)
        except (SongrayError, MemoryError):
            raise
        except Exception as error:  # of a parser that met an unexpected response
            problem = _problem("malformed", f"{page.name}: {_words(error)}")
            return page, Contents(problems=[problem], finished=True)

    async with web.session() as session:
        return await asyncio.gather(*(fetch_page(page) for page in pages))


def storable(page: Page, contents: Contents) -> Contents:
    """The contents without the items that a table cannot hold, such as text with a lone surrogate, which
    "\\ud83d" in JSON stands for. Each of them is a problem instead."""
    problems = [_problem(*problem) for problem in contents.problems]
    kept: dict[str, Any] = {}
    for name, kind in ITEMS.items():
        items = getattr(contents, name)
        if not _conversion_error(items, kind):
            kept[name] = items
            continue
        errors = [_conversion_error([item], kind) for item in items]
        kept[name] = [item for item, error in zip(items, errors, strict=True) if not error]
        place = f"one of the {name} of {page.name}"
        problems += [_problem("bad_item", f"{place}: {error}") for error in errors if error]
    return replace(contents, problems=problems, **kept)


def _conversion_error(items: list[Any], kind: pa.DataType) -> str:
    """Why a table cannot hold some items; "" where it can."""
    try:
        pa.array(map(vars, items), kind)
    except MALFORMED as error:  # pyarrow's errors are among them
        return str(error)
    return ""


def _words(error: Exception) -> str:
    """The message of an error whose type says nothing more, else both."""
    is_plain = isinstance(error, OSError | ValueError | SongrayError)
    return str(error) if is_plain else f"{type(error).__name__}: {error}"


def _problem(kind: str, detail: str) -> Problem:
    return Problem(*(text.encode(errors="backslashreplace").decode() for text in (kind, detail)))
