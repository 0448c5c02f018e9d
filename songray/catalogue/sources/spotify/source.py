"""Spotify's catalogue through spotipy: searches, playlists, artists, their albums, and related artists.

An app in development mode may ask for less than one with extended quota. What it could not have is a problem
of the page, of a class that a person can count, and the crawl goes on without.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp
import spotipy

from songray import web
from songray.catalogue.sources.base import Contents, Page, read_at_once
from songray.catalogue.sources.spotify import answers
from songray.catalogue.sources.spotify.answers import LETTERS, MOST, Question, page_of
from songray.catalogue.sources.spotify.app import app
from songray.errors import FetchError

WINDOW_SECONDS = 30  # in which Spotify counts requests
MOST_IN_DEVELOPMENT = 10  # entries of a search or of an artist's albums; a request for more is refused
REFUSALS = 3  # in a row, after which a process believes that its app may not ask such a thing at all


@dataclass(frozen=True)
class SpotifySource:
    """The app's credentials come from the environment alone, SPOTIPY_CLIENT_ID and SPOTIPY_CLIENT_SECRET, on
    every machine that reads. Workers have the driver's environment only on the driver's machine: for others
    set both where `ray start` runs. (A job's runtime environment would do, but the dashboard shows it.)
    """

    name: ClassVar[str] = "spotify"
    tells_all: ClassVar[bool] = True

    search: tuple[str, ...] = ()
    """Searches for tracks, in Spotify's syntax (words, genre:jazz, year:1959): up to 1000 tracks each."""

    playlists: tuple[str, ...] = ()
    """Playlists, by id, URI or link. In development mode only those of the app's owner tell their items."""

    artists: tuple[str, ...] = ()
    """Artists, by id, URI or link: their albums and top tracks. A step further away lie the artists that
    are related to them, and all that play on the same tracks."""

    requests_per_second: float = 3.0
    """Of all workers together. Spotify does not tell its limit, which it counts in windows of 30 seconds."""

    timeout_seconds: float = 30.0
    """The longest silence before or within an answer."""

    spotify_url: str = "https://api.spotify.com/v1/"
    """Root of the API."""

    token_url: str = "https://accounts.spotify.com/api/token"
    """Where the credentials are exchanged for a token."""

    def pages(self) -> Iterator[Page]:
        if not (self.search or self.playlists or self.artists):
            raise ValueError("nowhere to begin: name --search, --playlists or --artists")
        if self.requests_per_second <= 0 or self.timeout_seconds <= 0:
            raise ValueError(f"{self}: --requests-per-second and --timeout-seconds must be above 0")
        if not all(words.strip() for words in self.search):
            raise ValueError(f"--search {self.search}: one of them is empty")
        app(self.spotify_url, self.token_url, self.timeout_seconds)  # has credentials
        for words in self.search:
            yield page_of("search", q=words, limit=MOST, offset=0)
        for playlist in self.playlists:
            yield page_of(f"playlist/{_id('playlist', playlist)}", fingerprint=None)
        for artist in self.artists:
            yield page_of(f"artist/{_id('artist', artist)}")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_at_once(pages, _Reader(self).ask)


def _id(kind: str, text: str) -> str:
    """The id in an id, a URI or a link; raises ValueError."""
    prefix = rf"spotify:{kind}:|https?://open\.spotify\.com/(intl-\w+/)?{kind}/"
    if match := re.fullmatch(rf"({prefix})?(?P<id>[0-9A-Za-z]+)(\?.*)?", text.strip()):
        return match["id"]
    raise ValueError(f"--{kind}s {text}: that is no id, URI or link of a {kind}")


class _Reader:
    """One call of `read`: its pages share a client."""

    def __init__(self, source: SpotifySource) -> None:
        self._source = source
        self._app = app(source.spotify_url, source.token_url, source.timeout_seconds)
        self._client: web.Client | None = None

    async def ask(self, page: Page, session: aiohttp.ClientSession) -> Contents:
        """What one request tells of a page, or how to go on without it; raises FetchError."""
        question = Question.of(page)
        endpoint = ENDPOINTS[question.kind]
        refused = self._app.refused[question.kind, question.limit]
        if len(refused) >= REFUSALS:
            return _without(question, endpoint, refused[-1])
        try:
            answer = await self._answer(question, endpoint, session)
        except FetchError as failure:
            if failure.status in endpoint.refusals:
                refused.append(failure)
            return _without(question, endpoint, failure)
        refused.clear()
        try:
            return endpoint.tell(question, answer)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FetchError("bad_answer", f"{type(error).__name__}: {error}"[:LETTERS]) from error

    async def _answer(
        self, question: Question, endpoint: _Endpoint, session: aiohttp.ClientSession
    ) -> dict[str, Any]:
        if self._client is None:
            limit = web.Limit.at(self._source.requests_per_second, WINDOW_SECONDS)
            self._client = web.Client(session, urlsplit(self._source.spotify_url).netloc, limit)
        request = partial(self._app.answer, lambda spotify: endpoint.request(spotify, question))
        answer: dict[str, Any] = await self._client.ask(partial(asyncio.to_thread, request))
        return answer


def _without(question: Question, endpoint: _Endpoint, failure: FetchError) -> Contents:
    """The pages that stand in for a refused one, or else the problem that it is missing."""
    if failure.status in endpoint.refusals and (pages := endpoint.instead(question)):
        return Contents(pages=pages)
    if failure.status in (403, 404):
        return Contents(problems=[f"{endpoint.missing}: {question.place}: {failure}"])
    raise failure


def _smaller(question: Question) -> list[Page]:
    smaller = question.asked_with(limit=MOST_IN_DEVELOPMENT)
    return [smaller] if question.limit > MOST_IN_DEVELOPMENT else []


def _one_by_one(question: Question) -> list[Page]:
    return [page_of(f"track/{track}") for track in question.ids]


def _nothing(question: Question) -> list[Page]:
    return []


@dataclass(frozen=True)
class _Endpoint:
    request: Callable[[spotipy.Spotify, Question], Any]  # a single one
    tell: Callable[[Question, dict[str, Any]], Contents]
    missing: str  # class of the problem that it is refused
    refusals: frozenset[int] = frozenset()  # statuses that may mean the app, and not what it asks for
    instead: Callable[[Question], list[Page]] = _nothing


def _old_playlist_items(spotify: spotipy.Spotify, asked: Question) -> Any:
    """spotipy 2.26 knows only the new name, but follows any link."""
    path = f"playlists/{asked.id}/tracks?limit={asked.limit}&offset={asked.offset}"
    return spotify.next({"next": f"{spotify.prefix}{path}&additional_types=track,episode"})


ENDPOINTS = {
    "search": _Endpoint(
        lambda spotify, asked: spotify.search(asked.options["q"], asked.limit, asked.offset, "track"),
        answers.tell_search, "no_search", frozenset({400}), _smaller),
    "playlist": _Endpoint(
        lambda spotify, asked: spotify.playlist(asked.id, "name,snapshot_id,items.total,tracks.total"),
        answers.tell_playlist, "no_playlist"),
    "playlist/items": _Endpoint(
        lambda spotify, asked: spotify.playlist_items(asked.id, None, asked.limit, asked.offset),
        answers.tell_playlist_items, "no_playlist_items"),
    "playlist/tracks": _Endpoint(_old_playlist_items, answers.tell_playlist_items, "no_playlist_items"),
    "artist": _Endpoint(lambda spotify, asked: spotify.artist(asked.id), answers.tell_artist, "no_artist"),
    "artists": _Endpoint(
        lambda spotify, asked: spotify.artists(asked.ids),
        answers.tell_artists, "no_genres", frozenset({403, 404})),
    "artist/albums": _Endpoint(
        lambda spotify, asked: spotify.artist_albums(
            asked.id, include_groups="album,single", limit=asked.limit, offset=asked.offset),
        answers.tell_albums, "no_albums", frozenset({400}), _smaller),
    "artist/top-tracks": _Endpoint(
        lambda spotify, asked: spotify.artist_top_tracks(asked.id),
        answers.tell_tracks, "no_top_tracks", frozenset({403})),
    "artist/related-artists": _Endpoint(
        lambda spotify, asked: spotify.artist_related_artists(asked.id),
        answers.tell_related_artists, "no_related_artists", frozenset({403})),
    "album/tracks": _Endpoint(
        lambda spotify, asked: spotify.album_tracks(asked.id, asked.limit, asked.offset),
        answers.tell_album_tracks, "no_album_tracks"),
    "tracks": _Endpoint(
        lambda spotify, asked: spotify.tracks(asked.ids),
        answers.tell_tracks, "no_tracks", frozenset({403, 404}), _one_by_one),
    "track": _Endpoint(lambda spotify, asked: spotify.track(asked.id), answers.tell_track, "no_track"),
}  # fmt: skip
