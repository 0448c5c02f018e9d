"""Spotify with generated artists, in the formats and with the refusals of its documentation of 2026.

Artists 2n + 1 and 2n + 2 are related to artist n, as far as they exist: a tree of known depth. The first
track of each album also has the next artist. An id contains its numbers, so a catalogue of any size takes no
memory.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from aiohttp import web

JSON = dict[str, Any]
Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]  # None: the usual response follows

CLIENT_ID, CLIENT_SECRET = "fakeclientid", "fakeclientsecret"
TOKEN = "faketoken"  # followed by its number
SEARCHABLE = 1000
TOP_TRACKS = 10


@dataclass
class Playlist:
    """Entries are ids of tracks, "episode", "local", or None for what is gone from the catalogue."""

    name: str
    entries: Sequence[str | None]
    snapshot_id: str = "snapshot1"
    owned: bool = True  # by the owner of the app


@dataclass
class FakeSpotify:
    artists: int = 7
    albums: int = 2  # of each artist
    tracks: int = 3  # of each album
    search_results: int | None = None  # all tracks if None
    playlists: dict[str, Playlist] = field(default_factory=dict)
    development: bool = False
    prefix: str = ""  # of all paths, so that fakes can share an address
    requests: Counter[str] = field(default_factory=Counter)  # of the API, by path and query
    tokens: int = 0  # issued
    revoked: int = 0  # of them
    faults: defaultdict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))

    def inject(self, path: str, *faults: Fault) -> None:
        """Faults of the next requests of a path, one after the other."""
        self.faults[path].extend(faults)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        application.router.add_post(f"{self.prefix}/api/token", self._token)
        for path, respond in {
            "search": self._search,
            "playlists/{id}": self._playlist,
            "playlists/{id}/{name:items|tracks}": self._playlist_items,
            "artists": self._artists,
            "artists/{id}": self._artist,
            "artists/{id}/albums": self._albums,
            "artists/{id}/top-tracks": self._top_tracks,
            "artists/{id}/related-artists": self._related_artists,
            "albums/{id}/tracks": self._album_tracks,
            "tracks": self._tracks,
            "tracks/{id}": self._track,
        }.items():
            application.router.add_get(f"{self.prefix}/v1/{path}{{slash:/?}}", _as_json(respond))
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path.removeprefix(self.prefix).removeprefix("/v1").strip("/")
        if path != "api/token":
            self.requests[f"{path}?{request.query_string}".rstrip("?")] += 1
        if (queue := self.faults[path]) and (response := await queue.popleft()(request)):
            return response
        if path != "api/token" and not self._is_valid(request.headers.get("Authorization", "")):
            return refusal(401, "The access token expired")
        handled: web.StreamResponse = await handler(request)
        return handled

    def _is_valid(self, authorization: str) -> bool:
        number = authorization.removeprefix(f"Bearer {TOKEN}")
        return number.isdigit() and self.revoked < int(number) <= self.tokens

    async def _token(self, request: web.Request) -> web.Response:
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {expected}":
            error = {"error": "invalid_client", "error_description": "Invalid client"}
            return web.json_response(error, status=400)
        if (await request.post()).get("grant_type") != "client_credentials":
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        self.tokens += 1
        token = {"access_token": f"{TOKEN}{self.tokens}", "token_type": "Bearer", "expires_in": 3600}
        return web.json_response(token)

    def _search(self, request: web.Request) -> JSON:
        limit, offset = _bounds(request, most=10 if self.development else 50)
        if offset + limit > SEARCHABLE or not request.query["q"] or request.query["type"] != "track":
            raise Refusal(400, "Bad search")
        tracks = self.artists * self.albums * self.tracks
        total = tracks if self.search_results is None else self.search_results
        results = [self._numbered(number % tracks) for number in range(offset, min(offset + limit, total))]
        return {"tracks": _paging(request, results, limit, offset, total)}

    def _playlist(self, request: web.Request) -> JSON:
        playlist_id, playlist = request.match_info["id"], self._find_playlist(request)
        place = {"href": f"{request.url.origin()}{request.path}", "uri": f"spotify:playlist:{playlist_id}"}
        item = {"id": playlist_id, "type": "playlist", "description": "", "images": [], "public": True}
        item |= {**place, "name": playlist.name, "snapshot_id": playlist.snapshot_id, "owner": {"id": "x"}}
        if playlist.owned or not self.development:
            item["items" if self.development else "tracks"] = {"total": len(playlist.entries)}
        names = {name.split(".")[0] for name in request.query.get("fields", "").split(",")} - {""}
        return {name: value for name, value in item.items() if not names or name in names}

    def _find_playlist(self, request: web.Request) -> Playlist:
        if playlist := self.playlists.get(request.match_info["id"]):
            return playlist
        raise Refusal(404, "Resource not found")

    def _playlist_items(self, request: web.Request) -> JSON:
        playlist = self._find_playlist(request)
        if request.match_info["name"] != ("items" if self.development else "tracks"):
            raise Refusal(404, "Service not found")
        if self.development and not playlist.owned:
            raise Refusal(403, "Forbidden")
        limit, offset = _bounds(request, most=50 if self.development else 100)
        entries = [self._entry(entry) for entry in playlist.entries[offset : offset + limit]]
        return _paging(request, entries, limit, offset, len(playlist.entries))

    def _entry(self, entry: str | None) -> JSON:
        item: JSON | None
        if entry == "episode":
            item = {"id": "episode" + "0" * 15, "name": "Talk", "type": "episode", "duration_ms": 1000}
        elif entry == "local":
            item = {"id": None, "name": "Local", "type": "track", "is_local": True}
            item |= {"artists": [], "album": {}}
        else:
            item = self.full_track(*_numbers(entry)) if entry else None
        added = {"added_at": "2026-01-01T00:00:00Z", "added_by": {"id": "x"}, "is_local": entry == "local"}
        return {**added, "item" if self.development else "track": item}

    def _artist(self, request: web.Request) -> JSON:
        return self.full_artist(self._find_artist(request))

    def _artists(self, request: web.Request) -> JSON:
        ids = self._ids(request)
        return {"artists": [self.full_artist(*_numbers(artist)) for artist in ids]}

    def _ids(self, request: web.Request) -> list[str]:
        ids = request.query["ids"].split(",")
        if self.development:
            raise Refusal(403, "Forbidden")
        if len(ids) > 50:
            raise Refusal(400, "Too many ids requested")
        return ids

    def _find_artist(self, request: web.Request) -> int:
        (artist,) = _numbers(request.match_info["id"])
        if artist < self.artists:
            return artist
        raise Refusal(404, "Resource not found")

    def _albums(self, request: web.Request) -> JSON:
        artist = self._find_artist(request)
        limit, offset = _bounds(request, most=10 if self.development else 50)
        numbers = range(self.albums)[offset : offset + limit]
        albums = [self.full_album(artist, album) for album in numbers]
        return _paging(request, albums, limit, offset, self.albums)

    def _top_tracks(self, request: web.Request) -> JSON:
        artist = self._find_artist(request)
        if self.development:
            raise Refusal(403, "Forbidden")
        numbers = range(min(TOP_TRACKS, self.albums * self.tracks))
        return {"tracks": [self.full_track(artist, *divmod(number, self.tracks)) for number in numbers]}

    def _related_artists(self, request: web.Request) -> JSON:
        artist = self._find_artist(request)
        if self.development:
            raise Refusal(404, "Not found")
        related = (2 * artist + 1, 2 * artist + 2)
        return {"artists": [self.full_artist(other) for other in related if other < self.artists]}

    def _album_tracks(self, request: web.Request) -> JSON:
        artist, album = _numbers(request.match_info["id"])
        limit, offset = _bounds(request, most=50)
        numbers = range(self.tracks)[offset : offset + limit]
        tracks = [self._simplified_track(artist, album, track) for track in numbers]
        return _paging(request, tracks, limit, offset, self.tracks)

    def _tracks(self, request: web.Request) -> JSON:
        return {"tracks": [self.full_track(*_numbers(track)) for track in self._ids(request)]}

    def _track(self, request: web.Request) -> JSON:
        return self.full_track(*_numbers(request.match_info["id"]))

    def full_artist(self, artist: int) -> JSON:
        item = _linked("artist", artist_id(artist)) | {"name": f"Artist {artist}", "images": []}
        more = {"genres": [f"genre {artist % 3}"], "followers": {"total": artist}, "popularity": 50}
        return item | ({} if self.development else more)

    def _simplified_artist(self, artist: int) -> JSON:
        return _linked("artist", artist_id(artist)) | {"name": f"Artist {artist}"}

    def full_album(self, artist: int, album: int) -> JSON:
        date, precision = [("1959", "year"), ("1959-08", "month"), ("1959-08-17", "day")][album % 3]
        item = _linked("album", album_id(artist, album)) | {
            "name": f"Album {album} of {artist}",
            "images": [],
        }
        item |= {"album_type": "album", "total_tracks": self.tracks, "release_date": date}
        item |= {"release_date_precision": precision, "artists": [self._simplified_artist(artist)]}
        return item | ({} if self.development else {"label": "L", "available_markets": ["US"]})

    def _simplified_track(self, artist: int, album: int, track: int) -> JSON:
        artists = [artist, artist + 1] if track == 0 and artist + 1 < self.artists else [artist]
        item = _linked("track", track_id(artist, album, track)) | {"name": f"Track {track} of {album}"}
        item |= {"disc_number": 1, "track_number": track + 1, "duration_ms": 180_500, "explicit": track == 1}
        item |= {"artists": [self._simplified_artist(number) for number in artists], "is_local": False}
        clip = f"{artist:020x}{album:010x}{track:010x}"
        has_preview = track % 2 == 0 and not self.development
        return item | {"preview_url": f"https://p.scdn.co/mp3-preview/{clip}?cid=1" if has_preview else None}

    def full_track(self, artist: int, album: int, track: int) -> JSON:
        item = self._simplified_track(artist, album, track) | {"album": self.full_album(artist, album)}
        item |= {"external_ids": {"isrc": isrc(artist, album, track)}}
        return item | ({} if self.development else {"popularity": 10, "available_markets": ["US"]})

    def _numbered(self, number: int) -> JSON:
        album, track = divmod(number, self.tracks)
        return self.full_track(*divmod(album, self.albums), track)


def artist_id(artist: int) -> str:
    return f"artist{artist:016d}"


def album_id(artist: int, album: int) -> str:
    return f"album{artist:013d}{album:04d}"


def track_id(artist: int, album: int, track: int) -> str:
    return f"track{artist:010d}{album:04d}{track:03d}"


def isrc(artist: int, album: int, track: int) -> str:
    return f"ZZ{artist:05d}{album:03d}{track:02d}"


def _numbers(spotify_id: str) -> tuple[int, ...]:
    """The numbers in an id."""
    for kind, bounds in {"artist": (6, 22), "album": (5, 18, 22), "track": (5, 15, 19, 22)}.items():
        if spotify_id.startswith(kind) and len(spotify_id) == 22:
            return tuple(int(spotify_id[a:b]) for a, b in pairwise(bounds))
    raise Refusal(404, "Resource not found")


def _linked(kind: str, spotify_id: str) -> JSON:
    links = {"external_urls": {"spotify": f"https://open.spotify.com/{kind}/{spotify_id}"}}
    href = f"https://api.spotify.com/v1/{kind}s/{spotify_id}"
    return {"id": spotify_id, "type": kind, "uri": f"spotify:{kind}:{spotify_id}", "href": href, **links}


def _bounds(request: web.Request, most: int) -> tuple[int, int]:
    limit, offset = int(request.query.get("limit", min(20, most))), int(request.query.get("offset", 0))
    if not 1 <= limit <= most:
        raise Refusal(400, "Invalid limit")
    return limit, offset


def _paging(request: web.Request, items: list[JSON], limit: int, offset: int, total: int) -> JSON:
    def at(start: int) -> str:  # absolute, at this server
        return str(request.url.update_query(offset=start, limit=limit))

    next_page = at(offset + limit) if offset + limit < total else None
    previous_page = at(max(0, offset - limit)) if offset else None
    item = {"href": str(request.url), "items": items, "limit": limit, "offset": offset, "total": total}
    return item | {"next": next_page, "previous": previous_page}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def _as_json(respond: Callable[[web.Request], JSON]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(respond(request))
        except Refusal as error:
            return refusal(error.status, error.message)

    return handle


def refusal(status: int, message: str, reason: str = "", retry_after: object = None) -> web.Response:
    error = {"status": status, "message": message} | ({"reason": reason} if reason else {})
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response({"error": error}, status=status, headers=headers)


def refused(status: int, message: str = "Fault", **more: Any) -> Fault:
    async def handle(request: web.Request) -> web.Response:
        return refusal(status, message, **more)

    return handle


def too_many(retry_after: object = None, reason: str = "") -> Fault:
    return refused(429, "API rate limit exceeded", retry_after=retry_after, reason=reason)


def body(text: str, status: int = 200) -> Fault:
    """Any text as a body, such as JSON that is cut off."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=text, status=status, content_type="application/json")

    return handle


async def reset(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


def slow(seconds: float) -> Fault:
    async def wait(request: web.Request) -> None:
        await asyncio.sleep(seconds)

    return wait
