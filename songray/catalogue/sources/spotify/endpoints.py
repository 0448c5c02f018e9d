"""Requests to Spotify: the endpoint of each kind of page, and the pages that replace a refused one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import spotipy

from songray import web
from songray.catalogue.sources.base import Contents, Page, Problem
from songray.catalogue.sources.spotify import responses
from songray.catalogue.sources.spotify.app import App
from songray.catalogue.sources.spotify.responses import MAX_LETTERS, PageRequest, page_of
from songray.errors import FetchError

WINDOW_SECONDS = 30  # in which Spotify counts requests
MAX_ITEMS_IN_DEVELOPMENT = 10  # of a search or an artist's albums; a request for more is refused
MAX_REFUSALS = 3  # consecutive ones, after which the app is taken to have no access to an endpoint


class Endpoints:
    """Reads pages through one app at a limited rate."""

    def __init__(self, app: App, requests_per_second: float) -> None:
        self._app = app
        self._limit = web.Limit.at(requests_per_second, WINDOW_SECONDS)

    async def fetch_page(self, page: Page, session: aiohttp.ClientSession) -> Contents:
        """The contents of a page, or the pages that replace a refused one. Raises FetchError."""
        request = PageRequest.of(page)
        endpoint = ENDPOINTS[request.kind]
        refused = self._app.refused[request.kind, request.limit]
        if len(refused) >= MAX_REFUSALS:
            return _replace_refused(request, endpoint, refused[-1])
        try:
            body = await self._body(request, endpoint, session)
        except FetchError as error:
            if error.status in endpoint.refusals:
                refused.append(error)
            return _replace_refused(request, endpoint, error)
        refused.clear()
        try:
            return endpoint.parse(request, body)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise FetchError("malformed", f"{type(error).__name__}: {error}"[:MAX_LETTERS]) from error

    async def _body(
        self, request: PageRequest, endpoint: _Endpoint, session: aiohttp.ClientSession
    ) -> dict[str, Any]:
        call = partial(self._app.request, lambda spotify: endpoint.call(spotify, request))
        client = web.Client(session, self._app.host, self._limit)
        body: dict[str, Any] = await client.request(partial(asyncio.to_thread, call))
        return body


def _replace_refused(request: PageRequest, endpoint: _Endpoint, error: FetchError) -> Contents:
    """The pages that replace a refused page, or else the problem that it is missing. Raises `error` where it
    is no refusal."""
    if error.status in endpoint.refusals and (pages := endpoint.alternatives(request)):
        return Contents(pages=pages)
    if error.status in (403, 404):
        return Contents(problems=[Problem(endpoint.missing, f"{request.place}: {error}")])
    raise error


def _smaller(request: PageRequest) -> list[Page]:
    smaller = request.with_options(limit=MAX_ITEMS_IN_DEVELOPMENT)
    return [smaller] if request.limit > MAX_ITEMS_IN_DEVELOPMENT else []


def _single_tracks(request: PageRequest) -> list[Page]:
    return [page_of(f"track/{track}") for track in request.ids]


def _no_alternatives(request: PageRequest) -> list[Page]:
    return []


@dataclass(frozen=True)
class _Endpoint:
    call: Callable[[spotipy.Spotify, PageRequest], Any]  # makes a single request
    parse: Callable[[PageRequest, dict[str, Any]], Contents]
    missing: str  # kind of the problem that a page is refused
    refusals: frozenset[int] = frozenset()  # statuses that may refuse the app rather than the page
    alternatives: Callable[[PageRequest], list[Page]] = _no_alternatives


def _former_playlist_items(spotify: spotipy.Spotify, request: PageRequest) -> Any:
    """spotipy 2.26 has no method for the endpoint's former name, but follows any link."""
    path = f"playlists/{request.id}/tracks?limit={request.limit}&offset={request.offset}"
    return spotify.next({"next": f"{spotify.prefix}{path}&additional_types=track,episode"})


ENDPOINTS = {
    "search": _Endpoint(
        lambda spotify, request: spotify.search(request.options["q"], request.limit, request.offset, "track"),
        responses.parse_search, "no_search", frozenset({400}), _smaller),
    "playlist": _Endpoint(
        lambda spotify, request: spotify.playlist(request.id, "name,snapshot_id,items.total,tracks.total"),
        responses.parse_playlist, "no_playlist"),
    "playlist/items": _Endpoint(
        lambda spotify, request: spotify.playlist_items(request.id, None, request.limit, request.offset),
        responses.parse_playlist_items, "no_playlist_items"),
    "playlist/tracks": _Endpoint(
        _former_playlist_items, responses.parse_playlist_items, "no_playlist_items"),
    "artist": _Endpoint(
        lambda spotify, request: spotify.artist(request.id), responses.parse_artist, "no_artist"),
    "artists": _Endpoint(
        lambda spotify, request: spotify.artists(request.ids),
        responses.parse_artists, "no_genres", frozenset({403, 404})),
    "artist/albums": _Endpoint(
        lambda spotify, request: spotify.artist_albums(
            request.id, include_groups="album,single", limit=request.limit, offset=request.offset),
        responses.parse_albums, "no_albums", frozenset({400}), _smaller),
    "artist/top-tracks": _Endpoint(
        lambda spotify, request: spotify.artist_top_tracks(request.id),
        responses.parse_tracks, "no_top_tracks", frozenset({403})),
    "artist/related-artists": _Endpoint(
        lambda spotify, request: spotify.artist_related_artists(request.id),
        responses.parse_related_artists, "no_related_artists", frozenset({403})),
    "album/tracks": _Endpoint(
        lambda spotify, request: spotify.album_tracks(request.id, request.limit, request.offset),
        responses.parse_album_tracks, "no_album_tracks"),
    "tracks": _Endpoint(
        lambda spotify, request: spotify.tracks(request.ids),
        responses.parse_tracks, "no_tracks", frozenset({403, 404}), _single_tracks),
    "track": _Endpoint(
        lambda spotify, request: spotify.track(request.id), responses.parse_track, "no_track"),
}  # fmt: skip
