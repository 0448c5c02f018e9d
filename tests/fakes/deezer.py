"""Deezer, as documented and as reported by users: errors come with HTTP 200, links to previews are signed and
expire. The catalogue is computed from the ids, so that any number of artists takes no memory."""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from fakes.faults import Faults

ALBUMS = 2  # of an artist
SONGS = 12  # of an album
TOP = 5  # songs of an artist
CHART = 10
GENRES = {113: "Dance", 132: "Pop", 116: "Rap/Hip Hop", 152: "Rock", 129: "Jazz", 98: "Classical"}
GENRE_ARTISTS = 50
STRIDES = (1, 104729, 104743, 104759, 104761, 104773, 104779, 104789, 104801, 104803, 104827,
           104831, 104849, 104851, 104869, 104879, 104891, 104911, 104917, 104933)  # fmt: skip
WINDOW_SECONDS = 5.0

Item = dict[str, Any]


class FakeDeezer:
    """A playlist has as many tracks as its number; `edits` counts its changes by playlist.

    A test may change edits, without_preview, unreadable and faults.queues while the fake is served.
    """

    def __init__(
        self,
        artists: int = 100,
        quota_errors: float = 0.0,
        rate: float | None = None,
        link_seconds: float = 900.0,
        preview_frames: int = 40,
    ) -> None:
        self.artists, self.quota_errors, self.rate = artists, quota_errors, rate
        self.link_seconds, self.preview_frames = link_seconds, preview_frames
        self.without_preview: set[int] = set()
        self.previews: dict[int, str] = {}  # links in place of the usual ones
        self.unreadable: set[int] = set()
        self.edits: dict[int, int] = {}
        self.faults = Faults(quota=_quota, busy=_busy, no_data=_no_data, odd_error=_odd_error)
        self._random = random.Random(0)
        self._recent: deque[float] = deque()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self.faults.middleware()])
        routes: dict[str, Callable[[web.Request], Item]] = {
            "/search": self._search,
            "/track/{id:isrc:.*}": self._track_of_isrc,
            "/track/{id}": lambda request: self.track(request, _id(request)),
            "/album/{id}": self._album,
            "/album/{id}/tracks": self._album_tracks,
            "/artist/{id}": lambda request: self.artist(request, _id(request)),
            "/artist/{id}/top": self._top,
            "/artist/{id}/albums": self._albums,
            "/artist/{id}/related": self._related,
            "/playlist/{id}": self._playlist,
            "/playlist/{id}/tracks": self._playlist_tracks,
            "/chart/{id}": self._chart,
            "/genre": lambda request: {"data": [_genre(number) for number in GENRES]},
            "/genre/{id}/artists": self._genre_artists,
        }
        for path, respond in routes.items():
            application.router.add_get(path, self._as_handler(respond))
        application.router.add_get("/preview/{id}", self._preview)
        return application

    def _as_handler(self, respond: Callable[[web.Request], Item]) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            if self._over_quota():
                return await _quota(request)
            try:
                return web.json_response(respond(request))
            except (LookupError, ValueError):
                return await _no_data(request)

        return handler

    def _over_quota(self) -> bool:
        if self.quota_errors and self._random.random() < self.quota_errors:
            return True
        if self.rate is None:
            return False
        now = time.monotonic()
        while self._recent and self._recent[0] < now - WINDOW_SECONDS:
            self._recent.popleft()
        self._recent.append(now)
        return len(self._recent) > self.rate * WINDOW_SECONDS

    def artist(self, request: web.Request, number: int) -> Item:
        if not 1 <= number <= self.artists:
            raise LookupError(number)
        return {
            "id": number,
            "name": f"Artist {number}",
            "link": f"https://www.deezer.com/artist/{number}",
            "nb_album": ALBUMS,
            "nb_fan": number * 10,
            "radio": True,
            "tracklist": f"{_root(request)}/artist/{number}/top?limit=50",
            "type": "artist",
        }

    def related(self, number: int) -> list[int]:
        """The 20 artists related to an artist; every stride reaches all artists, so each is related to 20."""
        others = [(number * stride + place * 7919) % self.artists + 1 for place, stride in enumerate(STRIDES)]
        return [other for other in dict.fromkeys(others) if other != number]

    def songs(self, artist: int) -> list[int]:
        return [song for album in albums(artist) for song in songs(album)]

    def track(self, request: web.Request, number: int, *omitted: str) -> Item:
        """A song without the fields that a list omits."""
        album = number // 100
        artist = self.artist(request, album // 10)
        if number not in songs(album) or album not in albums(artist["id"]):
            raise LookupError(number)
        title = f"Song {number}"
        item = {
            "id": number,
            "readable": number not in self.unreadable,
            "title": title,
            "title_short": title,
            "title_version": "",
            "isrc": isrc(number),
            "link": f"https://www.deezer.com/track/{number}",
            "duration": 120 + number % 180,
            "track_position": number % 100,
            "disk_number": 1,
            "rank": number % 1_000_000,
            "release_date": _release_date(album),
            "explicit_lyrics": number % 5 == 0,
            "preview": self._link(request, number),
            "bpm": 120.0,
            "gain": -9.5,
            "contributors": [artist],
            "artist": artist,
            "album": _album(album) | {"release_date": _release_date(album)},
            "type": "track",
        }
        return {name: value for name, value in item.items() if name not in omitted}

    def _link(self, request: web.Request, number: int) -> str:
        if number in self.without_preview:
            return ""
        if number in self.previews:
            return self.previews[number]
        return f"{_root(request)}/preview/{number}?exp={time.time() + self.link_seconds:.3f}"

    def _in_list(self, request: web.Request, number: int) -> Item:
        omitted = ("isrc", "bpm", "gain", "contributors", "release_date", "track_position", "disk_number")
        item = self.track(request, number, *omitted)
        return item | {"album": _album(number // 100)}

    def _track_of_isrc(self, request: web.Request) -> Item:
        code = request.match_info["id"].removeprefix("isrc:")
        if not (code.startswith("QZ") and code[2:].isdigit()):
            raise LookupError(code)
        return self.track(request, int(code[2:]))

    def _search(self, request: web.Request) -> Item:
        """Songs of the artist whose number the query contains, then of the related artists."""
        digits = "".join(filter(str.isdigit, request.query["q"]))
        artist = int(digits or 0)
        exists = 1 <= artist <= self.artists
        artists = [artist, *self.related(artist)] if exists else []
        songs = [song for number in artists for song in self.songs(number)]
        return _list(request, songs, lambda number: self._in_list(request, number))

    def _album(self, request: web.Request) -> Item:
        number = _id(request)
        artist = self.artist(request, number // 10)
        if number not in albums(artist["id"]):
            raise LookupError(number)
        genre = list(GENRES)[artist["id"] % len(GENRES)]
        tracks = [self._in_list(request, song) for song in songs(number)]
        return _album(number) | {
            "upc": f"{number:012d}",
            "genre_id": genre,
            "genres": {"data": [_genre(genre)]},
            "label": "Fake Records",
            "nb_tracks": SONGS,
            "release_date": _release_date(number),
            "record_type": "album",
            "contributors": [artist],
            "artist": artist,
            "tracks": {"data": tracks},
        }

    def _album_tracks(self, request: web.Request) -> Item:
        omitted = ("album", "release_date", "contributors", "bpm", "gain")
        self.artist(request, _id(request) // 10)
        return _list(request, songs(_id(request)), lambda number: self.track(request, number, *omitted))

    def _top(self, request: web.Request) -> Item:
        top = self.songs(self.artist(request, _id(request))["id"])[:TOP]
        return _list(request, top, lambda number: self._in_list(request, number))

    def _albums(self, request: web.Request) -> Item:
        numbers = albums(self.artist(request, _id(request))["id"])
        more = {"genre_id": -1, "fans": 7, "record_type": "album", "explicit_lyrics": False}
        return _list(request, numbers, lambda n: _album(n) | more | {"release_date": _release_date(n)})

    def _related(self, request: web.Request) -> Item:
        related = self.related(self.artist(request, _id(request))["id"])
        return _list(request, related, lambda number: self.artist(request, number))

    def playlist_songs(self, number: int) -> list[int]:
        start = self.edits.get(number, 0)
        artists = [(start + place * 7 + number) % self.artists + 1 for place in range(number)]
        return [self.songs(artist)[place % SONGS] for place, artist in enumerate(artists)]

    def _checksum(self, number: int) -> str:
        return hashlib.md5(f"{number} {self.edits.get(number, 0)}".encode()).hexdigest()

    def _playlist(self, request: web.Request) -> Item:
        number = _id(request)
        first = [self._in_list(request, song) for song in self.playlist_songs(number)[:25]]
        return {
            "id": number,
            "title": f"Playlist #{number}: this & more?",
            "description": "",
            "public": True,
            "nb_tracks": number,
            "checksum": self._checksum(number),
            "creator": {"id": 1, "name": "somebody", "type": "user"},
            "tracks": {"data": first, "checksum": self._checksum(number)},
            "type": "playlist",
        }

    def _playlist_tracks(self, request: web.Request) -> Item:
        number = _id(request)
        added = {"time_add": 1_700_000_000}
        body = _list(request, self.playlist_songs(number), lambda n: self._in_list(request, n) | added)
        return body | {"checksum": self._checksum(number)}

    def _chart(self, request: web.Request) -> Item:
        if _id(request) not in (0, *GENRES):
            raise LookupError
        artists = range(1, min(CHART, self.artists) + 1)
        lists = {
            "tracks": [self._in_list(request, self.songs(number)[0]) for number in artists],
            "albums": [_album(albums(number)[0]) for number in artists],
            "artists": [self.artist(request, number) for number in artists],
            "playlists": [{"id": 30, "title": "Playlist #30: this & more?", "type": "playlist"}],
        }
        return {name: {"data": items, "total": len(items)} for name, items in lists.items()}

    def _genre_artists(self, request: web.Request) -> Item:
        place = list(GENRES).index(_id(request)) if _id(request) in GENRES else None
        if place is None:
            raise LookupError
        artists = [number for number in range(1, self.artists + 1) if number % len(GENRES) == place]
        return {"data": [self.artist(request, number) for number in artists[:GENRE_ARTISTS]]}  # no total

    async def _preview(self, request: web.Request) -> web.StreamResponse:
        if time.time() > float(request.query["exp"]):
            return web.Response(status=403, text="Forbidden")
        return web.Response(
            body=mp3(request.match_info["id"], self.preview_frames), content_type="audio/mpeg"
        )


def albums(artist: int) -> list[int]:
    return [artist * 10 + place for place in range(1, ALBUMS + 1)]


def songs(album: int) -> list[int]:
    return [album * 100 + place for place in range(1, SONGS + 1)]


def isrc(track: int) -> str:
    return f"QZ{track:010d}"


def mp3(title: str, frames: int) -> bytes:
    """Silence as MP3, 128 kbit/s at 44.1 kHz, 26 ms a frame, with a title: 1,149 frames are 480 kB."""
    text = b"\x03" + title.encode()
    frame = b"TIT2" + len(text).to_bytes(4, "big") + bytes(2) + text
    header = b"ID3\x03\x00\x00" + bytes([0, 0, len(frame) >> 7 & 0x7F, len(frame) & 0x7F])
    return header + frame + (b"\xff\xfb\x90\xc0" + bytes(413)) * frames


def _id(request: web.Request) -> int:
    return int(request.match_info["id"])


def _root(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


def _genre(number: int) -> Item:
    return {"id": number, "name": GENRES[number], "type": "genre"}


def _album(number: int) -> Item:
    return {"id": number, "title": f"Album {number}", "type": "album"}


def _release_date(album: int) -> str:
    """0000-00-00 stands for an unknown date."""
    return "0000-00-00" if album % 7 == 0 else f"{1960 + album % 60}-0{1 + album % 9}-15"


def _list(request: web.Request, numbers: Sequence[int], describe: Callable[[int], Item]) -> Item:
    index, limit = int(request.query.get("index", 0)), int(request.query.get("limit", 25))
    body: Item = {
        "data": [describe(number) for number in numbers[index : index + limit]],
        "total": len(numbers),
    }
    for name, start in (("prev", index - limit), ("next", index + limit)):
        if 0 <= start < len(numbers):
            body[name] = str(request.url.update_query(index=start, limit=limit))
    return body


async def _quota(request: web.Request) -> web.StreamResponse:
    return _error("Exception", "Quota limit exceeded", 4)


async def _busy(request: web.Request) -> web.StreamResponse:
    return _error("Exception", "Service busy", 700)


async def _no_data(request: web.Request) -> web.StreamResponse:
    return _error("DataException", "no data", 800)


async def _odd_error(request: web.Request) -> web.StreamResponse:
    return _error("ParameterException", "Wrong parameter", 500)


def _error(kind: str, message: str, code: int) -> web.Response:
    return web.json_response({"error": {"type": kind, "message": message, "code": code}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--artists", type=int, default=20_000)
    parser.add_argument("--quota-errors", type=float, default=0.0, help="share of requests that fail so")
    parser.add_argument("--rate", type=float, help="requests a second beyond which quota errors follow")
    options = parser.parse_args()
    deezer = FakeDeezer(options.artists, options.quota_errors, options.rate)
    web.run_app(deezer.application(), host="127.0.0.1", port=options.port, access_log=None)
