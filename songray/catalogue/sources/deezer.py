"""Deezer's catalogue, which needs no key.

A page is named by its request, relative to the root of the API. Its fragment, after "#", carries metadata of
a list (the title of a playlist, the genres of an album) that the items of the list do not repeat.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from songray import web
from songray.catalogue.sources.base import (
    Artist,
    AudioLocation,
    Contents,
    Page,
    PlaylistEntry,
    RelatedArtist,
    Track,
)
from songray.catalogue.sources.reading import MALFORMED, each_valid, read_concurrently
from songray.errors import FetchError, InvalidOption

if TYPE_CHECKING:
    import aiohttp

LIST_LIMIT = 100  # items of a list in one response
MAX_TOTAL = 1_000_000  # items of a list, of all its responses
WINDOW_SECONDS = 5.0  # in which Deezer counts requests
ERROR_KINDS = {4: "quota", 200: "forbidden", 700: "busy", 800: "no_data"}  # developers.deezer.com/api/errors
RETRYABLE_KINDS = ("quota", "busy")
ARTIST = "deezer:artist:"  # and a number: the id of an artist

Item = dict[str, Any]
Fragment = dict[str, list[str]]


@dataclass(frozen=True)
class DeezerApi:
    deezer_url: str = "https://api.deezer.com"
    """Root of Deezer's API."""
    deezer_requests_per_second: float = 9.0
    """Requests to Deezer a second by all workers together; it allows 50 in 5 seconds from one address."""
    deezer_pause_seconds: float = 5.0
    """Seconds without any request to Deezer after it has reported that the quota is exceeded."""
    deezer_preview_hosts: tuple[str, ...] = ("dzcdn.net",)
    """Hosts, with all domains below them, from which the service may fetch Deezer's previews."""

    def __post_init__(self) -> None:
        if self.deezer_requests_per_second <= 0:
            value = self.deezer_requests_per_second
            raise InvalidOption(f"--deezer-requests-per-second {value}: must be above 0")

    @property
    def limit(self) -> web.Limit:
        return web.Limit.at(self.deezer_requests_per_second, WINDOW_SECONDS)

    async def locate(self, session: aiohttp.ClientSession, reference: str) -> AudioLocation:
        """The preview of a track, by a signed link that expires after about 15 minutes.

        `reference` is the number of the track, or "isrc:<ISRC>". Raises FetchError: "no_match" where no
        track has that ISRC, "no_preview", or what `request` raises.
        """
        try:
            item = await self.request(session, f"track/{quote(reference, safe=':')}")
        except FetchError as error:
            if error.kind == "no_data" and reference.startswith("isrc:"):
                raise FetchError("no_match", f"Deezer has no track of {reference}", 200) from error
            raise
        if not item.get("id"):
            raise FetchError("malformed", f"track/{reference} has no id", 200, retryable=True)
        if not _has_preview(item):
            raise FetchError("no_preview", f"Deezer has no preview of track/{reference}", 200)
        return AudioLocation(str(item["preview"]), f"deezer:{item['id']}", is_public=True, expires=True)

    async def request(
        self, session: aiohttp.ClientSession, path: str, parameters: dict[str, str] | None = None
    ) -> Item:
        """The body of one response. Raises FetchError, also for errors that Deezer reports with HTTP 200."""

        async def get() -> Item:
            async with session.get(f"{self.deezer_url}/{path}", params=parameters) as response:
                retry_after = response.headers.get("Retry-After")
                web.check_status(response.status, str(response.url), retry_after)
                body = await response.json(content_type=None)
            self._check_body(body, str(response.url), web.retry_after_seconds(retry_after))
            return dict(body)

        return await web.Client(session, "deezer", self.limit).request(get)

    def _check_body(self, body: Any, url: str, retry_after_seconds: float) -> None:
        if not isinstance(body, dict):
            raise FetchError("malformed", f"{url} returned {reprlib.repr(body)}", 200, retryable=True)
        if not (error := body.get("error")):
            return
        code = error.get("code") if isinstance(error, dict) else None
        kind = ERROR_KINDS.get(code if isinstance(code, int) else 0, f"deezer_{code}")
        pause = retry_after_seconds or self.deezer_pause_seconds if kind == "quota" else 0.0
        detail = f"{url} returned {reprlib.repr(error)}"
        raise FetchError(kind, detail, 200, kind in RETRYABLE_KINDS, pause)


@dataclass(frozen=True)
class DeezerSource:
    name: ClassVar[str] = "deezer"
    is_complete: ClassVar[bool] = False
    is_public: ClassVar[bool] = True

    search: tuple[str, ...] = ()
    """Searches, such as 'artist:"x" track:"y"'; their results come without genres and ISRC."""
    playlists: tuple[int, ...] = ()
    """Playlists by number; a playlist is read again when it has changed."""
    charts: tuple[int, ...] = ()
    """Genres whose charts are read, 0 for the overall chart; what a chart lists is one link away."""
    genres: tuple[int, ...] = ()
    """Genres whose artists the crawl starts from."""
    artists: tuple[int, ...] = ()
    """Artists that the crawl starts from; related artists are one link away."""
    albums: tuple[int, ...] = ()
    """Albums by number."""
    discography: bool = False
    """Read all albums of each artist, not the top tracks: two requests an album, with genres and ISRC."""
    api: DeezerApi = DeezerApi()

    def pages(self) -> Iterator[Page]:
        pages = [
            *(Page(_name("search", {"q": text})) for text in self.search),
            *(_playlist_page({"id": number}) for number in self.playlists),
            *(Page(f"chart/{number}") for number in self.charts),
            *(Page(f"genre/{number}/artists") for number in self.genres),
            *(page for number in self.artists for page in self._artist_pages(number)),
            *(Page(f"album/{number}") for number in self.albums),
        ]
        if not pages:
            raise InvalidOption("the crawl of Deezer has no start: name --search, --playlists, --charts, "
                                "--genres, --artists or --albums")  # fmt: skip
        yield from dict.fromkeys(pages)

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_concurrently(pages, self._fetch_page)

    async def _fetch_page(self, page: Page, session: aiohttp.ClientSession) -> Contents:
        path, parameters, fragment = _parse_name(page.name)
        body = await self.api.request(session, path, parameters | {"limit": str(LIST_LIMIT)})
        try:
            return self._contents(page, path, fragment, body)
        except MALFORMED as error:
            detail = f"a response of unknown shape: {error!r}"
            is_text = isinstance(error, UnicodeError)  # a lone surrogate, which the next response has too
            raise FetchError("malformed", detail, 200, retryable=not is_text) from error

    def _contents(self, page: Page, path: str, fragment: Fragment, body: Item) -> Contents:
        match path.split("/"):
            case ["playlist", _]:  # read for its checksum: the tracks are read only if it has changed
                title = {"playlist": [body["title"]]}
                return Contents(pages=[Page(_name(f"{path}/tracks", fragment=title), body.get("checksum"))])
            case ["album", _]:
                genres = [genre["name"] for genre in body.get("genres", {}).get("data", [])]
                album = {"album": [body["title"]], "date": [body.get("release_date") or ""], "genres": genres}
                return Contents(pages=[Page(_name(f"{path}/tracks", fragment=album))])
            case ["chart", _]:
                return self._chart(page, body)
            case ["artist", _, "albums"]:
                contents = Contents()
                contents.pages.extend(
                    link for _, link in each_valid(page, contents, body["data"], _album_page)
                )
            case [_, number, "related" | "artists" as kind]:
                contents = self._artists(page, Contents(), body["data"])
                related = contents.artists if kind == "related" else []
                pairs = (RelatedArtist(f"{ARTIST}{number}", artist.artist_id) for artist in related)
                contents.related_artists.extend(pairs)
            case _:
                contents = _tracks(page, body["data"])
        contents.pages.extend(_next_pages(page, body))
        return contents

    def _chart(self, page: Page, body: Item) -> Contents:
        contents = self._artists(page, _tracks(page, body["tracks"]["data"]), body["artists"]["data"], step=1)
        for name, link_to in (("albums", _album_page), ("playlists", _playlist_page)):
            links = each_valid(page, contents, body[name]["data"], link_to)
            contents.pages.extend(replace(link, step=1) for _, link in links)
        return contents

    def _artists(self, page: Page, contents: Contents, items: list[Item], step: int = 0) -> Contents:
        """The contents with a list of artists and their pages."""
        for _, artist in each_valid(page, contents, items, _artist):
            contents.artists.append(artist)
            contents.pages.extend(self._artist_pages(artist.artist_id.removeprefix(ARTIST), step))
        return contents

    def _artist_pages(self, number: int | str, step: int = 0) -> list[Page]:
        tracks = "albums" if self.discography else "top"
        return [Page(f"artist/{number}/{tracks}", step=step), Page(f"artist/{number}/related", step=step + 1)]


def _album_page(album: Item) -> Page:
    return Page(f"album/{album['id']}")


def _playlist_page(playlist: Item) -> Page:
    return Page(f"playlist/{playlist['id']}", fingerprint=None)


def _name(path: str, parameters: dict[str, str] | None = None, fragment: Fragment | None = None) -> str:
    query = f"?{urlencode(parameters)}" if parameters else ""
    return path + query + (f"#{urlencode(fragment, doseq=True)}" if fragment else "")


def _parse_name(name: str) -> tuple[str, dict[str, str], Fragment]:
    """The path, the parameters and the fragment of a page."""
    request, _, fragment = name.partition("#")
    path, _, query = request.partition("?")
    return path, dict(parse_qsl(query)), parse_qs(fragment, keep_blank_values=True)


def _next_pages(page: Page, body: Item) -> list[Page]:
    """All further pages of a list, linked from its first one."""
    path, parameters, fragment = _parse_name(page.name)
    if "index" in parameters or not body.get("next"):
        return []
    items = int(parse_qs(urlsplit(body["next"]).query)["index"][0])
    total = min(body.get("total", 0), MAX_TOTAL)
    starts = range(items, max(total, items + 1), items)
    names = [_name(path, parameters | {"index": str(start)}, fragment) for start in starts]
    return [Page(name, page.fingerprint) for name in names]


def _tracks(page: Page, items: list[Item]) -> Contents:
    """The tracks of a list, with their positions where it is a playlist."""
    path, parameters, fragment = _parse_name(page.name)
    album, genres = _album(path, fragment), fragment.get("genres", [])
    contents, first = Contents(), int(parameters.get("index", 0))
    described = each_valid(page, contents, items, lambda item: _describe(album | item, genres), first)
    for position, (track, artists) in described:
        contents.tracks.append(track)
        contents.artists.extend(artists)
        for title in fragment.get("playlist", []):
            playlist_id = f"deezer:playlist:{path.split('/')[1]}"
            contents.playlist_entries.append(PlaylistEntry(playlist_id, title, position, track.track_id))
    return contents


def _album(path: str, fragment: Fragment) -> Item:
    """The album that the items of an album's list do not repeat."""
    if "album" not in fragment:
        return {}
    title, release_date = fragment["album"][0], fragment["date"][0]
    return {"album": {"id": path.split("/")[1], "title": title, "release_date": release_date}}


def _describe(item: Item, genres: list[str]) -> tuple[Track, list[Artist]]:
    """An item as a track and its artists. Raises one of MALFORMED."""
    if item["type"] != "track":
        raise ValueError(f"a {item['type']}, not a track")
    artists = [_artist(artist) for artist in item.get("contributors") or [item["artist"]]]
    album, explicit = item.get("album") or {}, item.get("explicit_lyrics")
    release_date = _date(item.get("release_date")) or _date(album.get("release_date"))
    track = Track(
        track_id=f"deezer:{item['id']}",
        title=str(item["title"]),
        location=f"deezer:{item['id']}" if _has_preview(item) else None,
        artist_ids=[artist.artist_id for artist in artists],
        artist_names=[artist.name for artist in artists],
        album_id=f"deezer:album:{album['id']}" if album else None,
        album=_text(album.get("title")),
        release_date=release_date,
        release_date_precision="day" if release_date else None,
        duration_seconds=float(item.get("duration") or 0) or None,
        genres=list(genres),
        isrc=_text(item.get("isrc")),
        explicit=bool(explicit) if explicit is not None else None,
        audio_version=str(item["id"]),
    )
    return track, artists


def _artist(item: Item) -> Artist:
    return Artist(f"{ARTIST}{item['id']}", str(item["name"]))


def _text(value: object) -> str | None:
    return str(value) if value else None


def _has_preview(item: Item) -> bool:
    return bool(item.get("preview")) and item.get("readable", True) is not False


def _date(text: str | None) -> str | None:
    """None also for 0000-00-00, which stands for an unknown date."""
    try:
        return date.fromisoformat(text or "").isoformat()
    except ValueError:
        return None
