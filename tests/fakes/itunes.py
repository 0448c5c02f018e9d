"""Apple's iTunes Search API: it limits the rate strictly, and refuses with 403 without Retry-After."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from fakes.deezer import mp3
from fakes.faults import Faults

ALBUMS = 3  # of an artist
MOST_RESULTS = 200

Item = dict[str, Any]


class FakeItunes:
    """Artist 7 has the albums 701, 702 and 703; album 701 has `songs`: 701001, 701002 and so on.

    A search returns the songs of the artist whose number it contains, and `others`, which are no songs.
    """

    def __init__(self, artists: int = 50, songs: int = 5, others: tuple[str, ...] = ()) -> None:
        self.artists, self.songs, self.others = artists, songs, others
        self.without_preview: set[int] = set()
        self.faults = Faults()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self.faults.middleware()])
        application.router.add_get("/search", self._search)
        application.router.add_get("/lookup", self._lookup)
        application.router.add_get("/previews/{name}", self._preview)
        return application

    async def _search(self, request: web.Request) -> web.StreamResponse:
        digits = "".join(filter(str.isdigit, request.query["term"]))
        songs = self._songs_of(request, int(digits or 0))
        return _results(request, [*map(_other, self.others), *songs])

    async def _lookup(self, request: web.Request) -> web.StreamResponse:
        number = int(request.query["id"])
        songs = list(self._songs_of(request, number))
        if songs:
            return _results(request, [_artist(number), *songs])
        songs = [song for song in self._songs_of(request, number // 100) if song["collectionId"] == number]
        if songs:
            return _results(request, [_album(number), *songs])
        return _results(request, [song for song in self._songs_of(request, number // 100_000)
                                  if song["trackId"] == number])  # fmt: skip

    def _songs_of(self, request: web.Request, artist: int) -> Iterator[Item]:
        if not 1 <= artist <= self.artists:
            return
        for album in range(100 * artist + 1, 100 * artist + 1 + ALBUMS):
            for place in range(1, self.songs + 1):
                yield self._song(request, artist, album, place)

    def _song(self, request: web.Request, artist: int, album: int, place: int) -> Item:
        number = album * 1000 + place
        preview = f"{request.scheme}://{request.host}/previews/mzaf_{number}.plus.aac.p.m4a"
        item = {
            "wrapperType": "track",
            "kind": "song",
            "artistId": artist,
            "collectionId": album,
            "trackId": number,
            "artistName": f"Artist {artist}",
            "collectionName": f"Album {album}",
            "trackName": f"Song {number}",
            "previewUrl": None if number in self.without_preview else preview,
            "artworkUrl100": f"https://is1-ssl.mzstatic.com/{album}/100x100bb.jpg",
            "releaseDate": f"{1960 + album % 60}-03-01T08:00:00Z",
            "trackExplicitness": ("notExplicit", "explicit", "cleaned")[place % 3],
            "discNumber": 1,
            "trackNumber": place,
            "trackTimeMillis": 180_500 + place,
            "country": "USA",
            "primaryGenreName": "Jazz",
        }
        return item

    async def _preview(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=mp3(request.match_info["name"], 40), content_type="audio/x-m4a")


def _artist(number: int) -> Item:
    names = {"artistName": f"Artist {number}", "artistId": number, "primaryGenreName": "Jazz"}
    return {"wrapperType": "artist", "artistType": "Artist"} | names


def _album(number: int) -> Item:
    names = {"collectionId": number, "collectionName": f"Album {number}", "artistId": number // 100}
    return {"wrapperType": "collection", "collectionType": "Album"} | names


def _other(kind: str) -> Item:
    return {"wrapperType": "track", "kind": kind, "trackId": 1, "trackName": "No song"}


def _results(request: web.Request, items: list[Item]) -> web.StreamResponse:
    """Apple's content type is JavaScript, although the body is JSON."""
    results = items[: min(int(request.query.get("limit", 50)), MOST_RESULTS)]
    body = {"resultCount": len(results), "results": results}
    return web.json_response(body, content_type="text/javascript")
