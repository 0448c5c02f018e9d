"""What every source of songs offers: pages to read, and the place of a track's audio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import aiohttp

from songray import web
from songray.errors import FetchError


@dataclass(frozen=True)
class Track:
    """What a catalogue knows of one song; unknown fields stay empty.

    `audio_version` changes when the sound behind the id does, and only then: a change of it makes
    a new revision, which the later stages compute anew. All other changes only update the row.
    """

    track_id: str  # "<source>:<id within the source>"
    title: str
    location: str | None  # of the audio: URL, absolute path, or "<source>:<id>" where that source tells
    # the URL just before the download (previews.LOCATORS)
    artist_ids: list[str] = field(default_factory=list)
    artist_names: list[str] = field(default_factory=list)
    album_id: str | None = None
    album: str | None = None
    release_date: str | None = None  # "1987", "1987-06" or "1987-06-30"
    release_date_precision: str | None = None  # "year", "month" or "day"
    duration_seconds: float | None = None
    genres: list[str] = field(default_factory=list)
    isrc: str | None = None
    explicit: bool | None = None
    recording: str | None = None  # groups ids that are one recording
    audio_version: str = ""


@dataclass(frozen=True)
class Artist:
    artist_id: str
    name: str
    genres: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlaylistEntry:
    playlist_id: str
    playlist: str  # its name
    position: int  # from 0
    track_id: str


@dataclass(frozen=True)
class Page:
    """A piece of a catalogue that is read as a whole: a file, a block of lines, an answer.

    A page whose name and fingerprint were read before is not read again.
    """

    name: str  # unique within the source
    fingerprint: str | None = ""  # differs whenever the content does; "" where that cannot be told without
    # reading it: read once, and again when a refresh is asked for; None: read again by every crawl
    step: int = 0  # 1 where following the link to it leads a step further away from what the user named


@dataclass(frozen=True)
class Contents:
    """What a piece of a page held. A problem is "class: sentence with the place"."""

    tracks: list[Track] = field(default_factory=list)
    artists: list[Artist] = field(default_factory=list)
    playlist_entries: list[PlaylistEntry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)  # that it leads to
    finished: bool = False  # nothing more comes of this page; else it counts as not read


class Source(Protocol):
    """A frozen dataclass of its options: it travels to the workers by pickle."""

    name: ClassVar[str]
    tells_all: ClassVar[bool]  # each page tells all that there is to know of its tracks

    def pages(self) -> Iterator[Page]:
        """Where to begin, cheaply; raises ValueError on options that cannot work."""

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        """Some pages, on any worker, in pieces that fit memory; a bad item is a problem, not an exception."""


def read_in_turn(
    pages: Sequence[Page], read: Callable[[Page], Iterator[Contents]]
) -> Iterator[tuple[Page, Contents]]:
    """One page after the other, for sources that work rather than wait."""
    for page in pages:
        try:
            for contents in read(page):
                yield page, contents
            yield page, Contents(finished=True)
        except (OSError, ValueError) as error:
            yield page, Contents(problems=[f"unreadable: {page.name}: {error}"], finished=True)


def read_at_once(
    pages: Sequence[Page], ask: Callable[[Page, aiohttp.ClientSession], Awaitable[Contents]]
) -> Iterator[tuple[Page, Contents]]:
    """All pages together, each an answer of a service on the web. A failure that may pass leaves its page
    unread, for the next run; any other is a problem of the page."""

    async def answer(page: Page, session: aiohttp.ClientSession) -> tuple[Page, Contents]:
        try:
            return page, replace(await ask(page, session), finished=True)
        except FetchError as failure:
            problem = f"{failure.kind}: {page.name}: {failure}"
            return page, Contents(problems=[problem], finished=not failure.retryable)

    async def answers() -> list[tuple[Page, Contents]]:
        async with web.session() as session:
            return await asyncio.gather(*(answer(page, session) for page in pages))

    yield from asyncio.run(answers())
