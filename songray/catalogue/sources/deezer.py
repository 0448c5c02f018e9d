"""Deezer's catalogue, open to everyone without a key.

A page is named by the request that it is, relative to the root of the API. Behind "#" stands what an earlier
answer said of all items of a list (a playlist's title, an album's genres), for the list does not repeat it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, ClassVar
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

import aiohttp

from songray import web
from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Track, read_at_once
from songray.errors import FetchError

LIST_LIMIT = 100  # items of a list in one answer
WINDOW_SECONDS = 5.0  # over which Deezer counts requests
KINDS = {4: "quota", 200: "forbidden", 700: "busy", 800: "no_data"}  # developers.deezer.com/api/errors
PASSING = ("quota", "busy")
MISSHAPEN = (AttributeError, KeyError, TypeError, ValueError)

Item = dict[str, Any]
Known = dict[str, list[str]]  # what stands behind "#"


@dataclass(frozen=True)
class Preview:
    url: str  # signed; dies after about 15 minutes
    track_id: str


@dataclass(frozen=True)
class DeezerApi:
    deezer_url: str = "https://api.deezer.com"
    """Root of Deezer's API."""
    deezer_requests_per_second: float = 9.0
    """Of all workers together; Deezer allows 50 in 5 seconds from one address."""
    deezer_pause_seconds: float = 5.0
    """How long nobody asks once Deezer has answered that the quota is used up."""

    def __post_init__(self) -> None:
        if self.deezer_requests_per_second <= 0:
            given = self.deezer_requests_per_second
            raise ValueError(f"--deezer-requests-per-second {given}: must be above 0")

    @property
    def limit(self) -> web.Limit:
        return web.Limit.at(self.deezer_requests_per_second, WINDOW_SECONDS)

    async def preview(self, session: aiohttp.ClientSession, reference: str) -> Preview:
        """Where a track's preview can be had now; `reference` is its number, or "isrc:" and an ISRC.

        Raises FetchError: "no_match" where no track has that ISRC, "no_preview", or what `ask` raises.
        """
        try:
            item = await self.ask(session, f"track/{quote(reference, safe=':')}")
        except FetchError as failure:
            if failure.kind == "no_data" and reference.startswith("isrc:"):
                raise FetchError("no_match", f"Deezer has no track of {reference}", 200) from failure
            raise
        if not item.get("id"):
            raise FetchError("malformed", f"track/{reference} has no id", 200, retryable=True)
        if not _can_be_heard(item):
            raise FetchError("no_preview", f"Deezer has no preview of track/{reference}", 200)
        return Preview(item["preview"], f"deezer:{item['id']}")

    async def ask(
        self, session: aiohttp.ClientSession, path: str, parameters: dict[str, str] | None = None
    ) -> Item:
        """The answer to one request; raises FetchError, also for the errors that come with HTTP 200."""

        async def request() -> Item:
            async with session.get(f"{self.deezer_url}/{path}", params=parameters) as response:
                retry_after = response.headers.get("Retry-After")
                web.check_status(response.status, str(response.url), retry_after)
                body = await response.json(content_type=None)
            self._check(body, str(response.url), web.retry_after_seconds(retry_after))
            return dict(body)

        return await web.Client(session, "deezer", self.limit).ask(request)

    def _check(self, body: Any, url: str, silence_seconds: float) -> None:
        if not isinstance(body, dict):
            raise FetchError("malformed", f"{url} answered {str(body)[:80]!r}", 200, retryable=True)
        if not (error := body.get("error")):
            return
        code = error.get("code") if isinstance(error, dict) else None
        kind = KINDS.get(code or 0, f"deezer_{code}")
        pause = silence_seconds or self.deezer_pause_seconds if kind == "quota" else 0.0
        raise FetchError(kind, f"{url} answered {error}", 200, kind in PASSING, pause)


@dataclass(frozen=True)
class DeezerSource:
    name: ClassVar[str] = "deezer"
    tells_all: ClassVar[bool] = False

    search: tuple[str, ...] = ()
    """What to search for, such as 'artist:"x" track:"y"'; found tracks come without genres and ISRC."""
    playlists: tuple[int, ...] = ()
    """Playlists by their number; read again when they have changed."""
    charts: tuple[int, ...] = ()
    """Genres whose charts to read, 0 for the chart of all; what they list besides tracks is a step away."""
    genres: tuple[int, ...] = ()
    """Genres from whose artists to begin."""
    artists: tuple[int, ...] = ()
    """Artists from whom to begin; each link to related artists is a step."""
    albums: tuple[int, ...] = ()
    """Albums by their number."""
    discography: bool = False
    """Of each artist all albums (two requests an album; with genres and ISRC), not the top tracks."""
    api: DeezerApi = DeezerApi()

    def pages(self) -> Iterator[Page]:
        pages = [
            *(Page(_name("search", {"q": text})) for text in self.search),
            *(_playlist(number) for number in self.playlists),
            *(Page(f"chart/{number}") for number in self.charts),
            *(Page(f"genre/{number}/artists") for number in self.genres),
            *(page for number in self.artists for page in self._of_artist(number)),
            *(Page(f"album/{number}") for number in self.albums),
        ]
        if not pages:
            raise ValueError("nothing is asked of Deezer: name --search, --playlists, --charts, --genres, "
                             "--artists or --albums")  # fmt: skip
        yield from dict.fromkeys(pages)

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_at_once(pages, self._read_page)

    async def _read_page(self, page: Page, session: aiohttp.ClientSession) -> Contents:
        path, parameters, known = _parts(page.name)
        body = await self.api.ask(session, path, parameters | {"limit": str(LIST_LIMIT)})
        try:
            return self._contents(page, path, known, body)
        except MISSHAPEN as error:
            detail = f"an answer of unknown shape: {error!r}"
            raise FetchError("malformed", detail, 200, retryable=True) from error

    def _contents(self, page: Page, path: str, known: Known, body: Item) -> Contents:
        match path.split("/"):
            case ["playlist", _]:  # read for its checksum: its tracks only where that is another
                title = {"playlist": [body["title"]]}
                return Contents(pages=[Page(_name(f"{path}/tracks", known=title), body.get("checksum"))])
            case ["album", _]:
                genres = [genre["name"] for genre in body.get("genres", {}).get("data", [])]
                said = {"album": [body["title"]], "date": [body.get("release_date") or ""], "genres": genres}
                return Contents(pages=[Page(_name(f"{path}/tracks", known=said))])
            case ["chart", _]:
                return self._chart(page, body)
            case ["artist", _, "albums"]:
                albums = [Page(f"album/{album['id']}") for album in body["data"]]
                return Contents(pages=albums + _rest_of_list(page, body))
            case [_, _, "related" | "artists"]:
                artists = body["data"]
                pages = [follow for artist in artists for follow in self._of_artist(artist["id"])]
                return Contents(
                    artists=[_artist(item) for item in artists], pages=pages + _rest_of_list(page, body)
                )
            case _:
                return replace(_tracks(page, body["data"]), pages=_rest_of_list(page, body))

    def _chart(self, page: Page, body: Item) -> Contents:
        contents = _tracks(page, body["tracks"]["data"])
        for artist in body["artists"]["data"]:
            contents.artists.append(_artist(artist))
            contents.pages.extend(self._of_artist(artist["id"], step=1))
        contents.pages.extend(Page(f"album/{album['id']}", step=1) for album in body["albums"]["data"])
        contents.pages.extend(_playlist(playlist["id"], step=1) for playlist in body["playlists"]["data"])
        return contents

    def _of_artist(self, number: int, step: int = 0) -> list[Page]:
        tracks = "albums" if self.discography else "top"
        return [Page(f"artist/{number}/{tracks}", step=step), Page(f"artist/{number}/related", step=step + 1)]


def _playlist(number: int, step: int = 0) -> Page:
    return Page(f"playlist/{number}", fingerprint=None, step=step)


def _name(path: str, parameters: dict[str, str] | None = None, known: Known | None = None) -> str:
    query = f"?{urlencode(parameters)}" if parameters else ""
    return path + query + (f"#{urlencode(known, doseq=True)}" if known else "")


def _parts(name: str) -> tuple[str, dict[str, str], Known]:
    """What _name put together."""
    request, _, known = name.partition("#")
    path, _, query = request.partition("?")
    return path, dict(parse_qsl(query)), parse_qs(known, keep_blank_values=True)


def _rest_of_list(page: Page, body: Item) -> list[Page]:
    """All further pages of a list, told by its first."""
    path, parameters, known = _parts(page.name)
    if "index" in parameters or not body.get("next"):
        return []
    items = int(parse_qs(urlsplit(body["next"]).query)["index"][0])
    starts = range(items, max(body.get("total", 0), items + 1), items)
    names = [_name(path, parameters | {"index": str(start)}, known) for start in starts]
    return [Page(name, page.fingerprint) for name in names]


def _tracks(page: Page, items: list[Item]) -> Contents:
    """Tracks of a list, and their places in it where it is a playlist."""
    path, parameters, known = _parts(page.name)
    contents = Contents()
    for position, item in enumerate(items, int(parameters.get("index", 0))):
        try:
            track, artists = _describe(_album_of(path, known) | item, known.get("genres", []))
        except MISSHAPEN as error:
            contents.problems.append(f"bad_item: number {position} of {page.name}: {error!r}")
            continue
        contents.tracks.append(track)
        contents.artists.extend(artists)
        for title in known.get("playlist", []):
            playlist_id = f"deezer:playlist:{path.split('/')[1]}"
            contents.playlist_entries.append(PlaylistEntry(playlist_id, title, position, track.track_id))
    return contents


def _album_of(path: str, known: Known) -> Item:
    """What each track of a list would say of its album, were it not the list of an album."""
    if "album" not in known:
        return {}
    title, release_date = known["album"][0], known["date"][0]
    return {"album": {"id": path.split("/")[1], "title": title, "release_date": release_date}}


def _describe(item: Item, genres: list[str]) -> tuple[Track, list[Artist]]:
    """An item as a track and its artists; raises one of MISSHAPEN on what is none."""
    if item["type"] != "track":
        raise ValueError(f"a {item['type']}, not a track")
    artists = [_artist(artist) for artist in item.get("contributors") or [item["artist"]]]
    album, explicit = item.get("album") or {}, item.get("explicit_lyrics")
    release_date = _date(item.get("release_date")) or _date(album.get("release_date"))
    track = Track(
        track_id=f"deezer:{item['id']}",
        title=str(item["title"]),
        location=f"deezer:{item['id']}" if _can_be_heard(item) else None,
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
    return Artist(f"deezer:artist:{item['id']}", str(item["name"]))


def _text(value: object) -> str | None:
    return str(value) if value else None


def _can_be_heard(item: Item) -> bool:
    return bool(item.get("preview")) and item.get("readable", True) is not False


def _date(text: str | None) -> str | None:
    """None also for 0000-00-00, by which Deezer says that it does not know."""
    try:
        return date.fromisoformat(text or "").isoformat()
    except ValueError:
        return None
