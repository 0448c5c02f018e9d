"""Apple's iTunes Search API, which needs no key and is slow; its previews are AAC at permanent links.

A page is named by its request, relative to the root of the API.
"""

from __future__ import annotations

import posixpath
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode, urlsplit

from songray import web
from songray.catalogue.sources.base import Artist, Contents, Page, Problem, Track
from songray.catalogue.sources.reading import each_valid, read_concurrently
from songray.errors import FetchError, InvalidOption

if TYPE_CHECKING:
    import aiohttp

MAX_RESULTS = 200  # of one request; the API has no further pages
THROTTLED_STATUSES = (403, 429)
WINDOW_SECONDS = 60.0  # in which Apple counts requests

Item = dict[str, Any]


@dataclass(frozen=True)
class ItunesApi:
    itunes_url: str = "https://itunes.apple.com"
    """Root of the iTunes Search API."""
    itunes_requests_per_minute: float = 20.0
    """Requests to iTunes a minute by all workers together; Apple allows about 20 from one address."""
    itunes_pause_seconds: float = 60.0
    """Seconds without any request to iTunes after it has refused one (403 or 429) without Retry-After."""
    itunes_preview_hosts: tuple[str, ...] = ("itunes.apple.com", "mzstatic.com")
    """Hosts, with all domains below them, from which the service may fetch previews of iTunes."""

    def __post_init__(self) -> None:
        if self.itunes_requests_per_minute <= 0:
            value = self.itunes_requests_per_minute
            raise InvalidOption(f"--itunes-requests-per-minute {value}: must be above 0")

    async def request(self, session: aiohttp.ClientSession, path: str) -> list[Item]:
        """The results in one response. Raises FetchError."""

        async def get() -> Any:
            async with session.get(f"{self.itunes_url}/{path}") as response:
                url, retry_after = str(response.url), response.headers.get("Retry-After")
                if response.status in THROTTLED_STATUSES:
                    detail = f"{url} returned {response.status}: too many requests"
                    pause = web.retry_after_seconds(retry_after) or self.itunes_pause_seconds
                    raise FetchError("throttled", detail, response.status, True, pause)
                web.check_status(response.status, url, retry_after)
                return await response.json(content_type=None)

        limit = web.Limit.at(self.itunes_requests_per_minute / 60, WINDOW_SECONDS)
        body = await web.Client(session, "itunes", limit, attempts=3).request(get)
        if not isinstance(body, dict) or not isinstance(body.get("results"), list):
            raise FetchError("malformed", f"returned {reprlib.repr(body)}", 200, retryable=True)
        results: list[Item] = body["results"]
        return results


@dataclass(frozen=True)
class ItunesSource:
    name: ClassVar[str] = "itunes"
    is_complete: ClassVar[bool] = True
    is_public: ClassVar[bool] = True

    search: tuple[str, ...] = ()
    """Searches; the API returns at most 200 songs of each."""
    ids: tuple[int, ...] = ()
    """Artists, albums or songs by iTunes id; the API returns at most 200 songs of each."""
    country: str = "US"
    """Country of the store, as two letters."""
    api: ItunesApi = ItunesApi()

    def pages(self) -> Iterator[Page]:
        if not (self.search or self.ids):
            raise InvalidOption("the crawl of iTunes has no start: name --search or --ids")
        songs: dict[str, str | int] = {"entity": "song", "limit": MAX_RESULTS, "country": self.country}
        for term in dict.fromkeys(self.search):
            yield Page(f"search?{urlencode({'term': term, 'media': 'music'} | songs)}")
        for number in dict.fromkeys(self.ids):
            yield Page(f"lookup?{urlencode({'id': number} | songs)}")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_concurrently(pages, self._fetch_page)

    async def _fetch_page(self, page: Page, session: aiohttp.ClientSession) -> Contents:
        return _contents(page, await self.api.request(session, page.name))


def _contents(page: Page, results: list[Item]) -> Contents:
    contents = Contents()
    for _ in each_valid(page, contents, results, partial(_add, contents)):
        pass
    if not results:
        contents.problems.append(Problem("no_data", f"{page.name}: iTunes has no result"))
    if len(results) >= MAX_RESULTS:
        detail = f"{page.name}: there may be more than {MAX_RESULTS} results: crawl the albums by --ids"
        contents.problems.append(Problem("cut_off", detail))
    return contents


def _add(contents: Contents, item: Item) -> None:
    """Add one result. Raises one of MALFORMED."""
    wrapper, kind = item.get("wrapperType"), item.get("kind")
    if wrapper == "artist":  # the response to a lookup of an artist begins with it
        contents.artists.append(_artist(item, [genre] if (genre := item.get("primaryGenreName")) else []))
    elif (wrapper, kind) == ("track", "song"):
        contents.tracks.append(_describe(item))
        contents.artists.append(_artist(item, []))
    elif wrapper != "collection":  # an album precedes its songs, which repeat its title
        detail = f"{kind or wrapper} {item.get('trackId')} is skipped"
        contents.problems.append(Problem("not_a_song", detail))


def _artist(item: Item, genres: list[str]) -> Artist:
    return Artist(f"itunes:artist:{item['artistId']}", str(item["artistName"]), genres)


def _describe(item: Item) -> Track:
    preview = item.get("previewUrl") or None
    album, milliseconds = item.get("collectionId"), item.get("trackTimeMillis")
    release_date = (item.get("releaseDate") or "")[:10] or None  # 2005-03-01T08:00:00Z
    explicitness = item.get("trackExplicitness")  # explicit, cleaned or notExplicit
    return Track(
        track_id=f"itunes:{item['trackId']}",
        title=str(item["trackName"]),
        location=preview,
        artist_ids=[_artist(item, []).artist_id],
        artist_names=[str(item["artistName"])],
        album_id=f"itunes:album:{album}" if album else None,
        album=item.get("collectionName"),
        release_date=release_date,
        release_date_precision="day" if release_date else None,
        duration_seconds=milliseconds / 1000 if milliseconds else None,
        genres=[item["primaryGenreName"]] if item.get("primaryGenreName") else [],
        explicit=explicitness == "explicit" if explicitness else None,
        audio_version=posixpath.basename(urlsplit(preview or "").path),  # the file name, on whichever host
    )
