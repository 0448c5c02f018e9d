"""Apple's iTunes Search API: open to everyone and slow; its previews are AAC in .m4a at lasting links.

A page is named by the request that it is, relative to the root of the API.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode, urlsplit

import aiohttp

from songray import web
from songray.catalogue.sources.base import Artist, Contents, Page, Track, read_at_once
from songray.errors import FetchError

MOST_RESULTS = 200  # of one request; Apple documents no way to the next ones
THROTTLED = (403, 429)

Item = dict[str, Any]


@dataclass(frozen=True)
class ItunesSource:
    name: ClassVar[str] = "itunes"
    tells_all: ClassVar[bool] = True

    search: tuple[str, ...] = ()
    """What to search for; Apple gives at most 200 songs of each."""
    ids: tuple[int, ...] = ()
    """Artists, albums or songs by their iTunes id; of each Apple gives at most 200 songs."""
    country: str = "US"
    """Whose shop to ask, in two letters."""
    itunes_url: str = "https://itunes.apple.com"
    """Root of the API."""
    itunes_requests_per_minute: float = 20.0
    """Of all workers together; Apple allows about 20 from one address."""
    itunes_pause_seconds: float = 60.0
    """How long nobody asks once Apple has refused (403 or 429) without saying for how long."""

    def pages(self) -> Iterator[Page]:
        if self.itunes_requests_per_minute <= 0:
            given = self.itunes_requests_per_minute
            raise ValueError(f"--itunes-requests-per-minute {given}: must be above 0")
        if not (self.search or self.ids):
            raise ValueError("nothing is asked of iTunes: name --search or --ids")
        songs: dict[str, str | int] = {"entity": "song", "limit": MOST_RESULTS, "country": self.country}
        for term in dict.fromkeys(self.search):
            yield Page(f"search?{urlencode({'term': term, 'media': 'music'} | songs)}")
        for number in dict.fromkeys(self.ids):
            yield Page(f"lookup?{urlencode({'id': number} | songs)}")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_at_once(pages, self._read_page)

    async def _read_page(self, page: Page, session: aiohttp.ClientSession) -> Contents:
        async def request() -> Any:
            async with session.get(f"{self.itunes_url}/{page.name}") as response:
                url, silence = str(response.url), web.retry_after_seconds(response.headers.get("Retry-After"))
                if response.status in THROTTLED:
                    detail = f"{url} answered {response.status}: too many requests"
                    pause = silence or self.itunes_pause_seconds
                    raise FetchError("throttled", detail, response.status, True, pause)
                web.check_status(response.status, url, response.headers.get("Retry-After"))
                return await response.json(content_type=None)

        limit = web.Limit.at(self.itunes_requests_per_minute / 60, window_seconds=60)
        body = await web.Client(session, self.name, limit, attempts=3).ask(request)
        if not isinstance(body, dict) or not isinstance(body.get("results"), list):
            raise FetchError("malformed", f"answered {str(body)[:80]!r}", 200, retryable=True)
        return _songs(page.name, body["results"])


def _songs(place: str, results: list[Item]) -> Contents:
    contents = Contents()
    for number, item in enumerate(results):
        try:
            _add(contents, item)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            contents.problems.append(f"bad_item: number {number} of {place}: {error!r}")
    if not results:
        contents.problems.append(f"no_data: {place}: iTunes has nothing of that")
    if len(results) >= MOST_RESULTS:
        contents.problems.append(
            f"cut_off: {place}: there may be more than {MOST_RESULTS} results: ask for albums"
        )
    return contents


def _add(contents: Contents, item: Item) -> None:
    """Take one result; raises AttributeError, KeyError, TypeError or ValueError on what cannot be read."""
    wrapper, kind = item.get("wrapperType"), item.get("kind")
    if wrapper == "artist":  # asked for by its id, it precedes its songs
        contents.artists.append(_artist(item, [genre] if (genre := item.get("primaryGenreName")) else []))
    elif (wrapper, kind) == ("track", "song"):
        contents.tracks.append(_describe(item))
        contents.artists.append(_artist(item, []))
    elif wrapper != "collection":  # that precedes its songs, too, which tell all that is needed of it
        contents.problems.append(f"not_a_song: {kind or wrapper} {item.get('trackId')}: skipped")


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
        audio_version=posixpath.basename(urlsplit(preview or "").path),  # named after the sound, on any host
    )
