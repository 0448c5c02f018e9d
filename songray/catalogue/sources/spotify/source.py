"""Spotify's catalogue through spotipy: searches, playlists, artists, their albums, and related artists.

An app in development mode may request less than one with extended quota. What Spotify refuses is a problem of
its page, and the crawl continues without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from songray.catalogue.sources.base import Contents, Page
from songray.catalogue.sources.reading import read_concurrently
from songray.catalogue.sources.spotify.responses import MAX_ITEMS, page_of
from songray.errors import InvalidOption


@dataclass(frozen=True)
class SpotifySource:
    """Spotify's catalogue, which needs the credentials of an app.

    They come only from the environment, SPOTIPY_CLIENT_ID and SPOTIPY_CLIENT_SECRET, on
    every machine that reads. Workers share the driver's environment only on the driver's machine: on others,
    set both where `ray start` runs. (A job's runtime environment would work, but the dashboard shows it.)
    """

    name: ClassVar[str] = "spotify"
    is_complete: ClassVar[bool] = True
    is_public: ClassVar[bool] = True

    search: tuple[str, ...] = ()
    """Searches for tracks, in Spotify's syntax (words, genre:jazz, year:1959): up to 1000 tracks each."""

    playlists: tuple[str, ...] = ()
    """Playlists, by id, URI or link. In development mode only playlists of the app's owner list their
    items."""

    artists: tuple[str, ...] = ()
    """Artists, by id, URI or link: their albums and top tracks. Related artists, and all artists of the same
    tracks, are one link away."""

    requests_per_second: float = 3.0
    """Requests a second by all workers together. Spotify does not publish its limit, which it counts in
    windows of 30 seconds."""

    timeout_seconds: float = 30.0
    """Seconds without data from Spotify after which a request fails."""

    spotify_url: str = "https://api.spotify.com/v1/"
    """Root of Spotify's API."""

    token_url: str = "https://accounts.spotify.com/api/token"
    """Address at which the credentials are exchanged for a token."""

    def pages(self) -> Iterator[Page]:
        if not (self.search or self.playlists or self.artists):
            raise InvalidOption("the crawl of Spotify has no start: name --search, --playlists or --artists")
        if self.requests_per_second <= 0 or self.timeout_seconds <= 0:
            raise InvalidOption(f"{self}: --requests-per-second and --timeout-seconds must be above 0")
        if not all(words.strip() for words in self.search):
            raise InvalidOption(f"--search {self.search}: one of them is empty")
        from songray.catalogue.sources.spotify.app import app  # it loads spotipy

        app(self.spotify_url, self.token_url, self.timeout_seconds)  # raises where credentials are missing
        for words in self.search:
            yield page_of("search", q=words, limit=MAX_ITEMS, offset=0)
        for playlist in self.playlists:
            yield page_of(f"playlist/{_id('playlist', playlist)}", fingerprint=None)
        for artist in self.artists:
            yield page_of(f"artist/{_id('artist', artist)}")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        from songray.catalogue.sources.spotify.app import app
        from songray.catalogue.sources.spotify.endpoints import Endpoints

        opened = app(self.spotify_url, self.token_url, self.timeout_seconds)
        return read_concurrently(pages, Endpoints(opened, self.requests_per_second).fetch_page)


def _id(kind: str, text: str) -> str:
    """The id in an id, a URI or a link. Raises InvalidOption."""
    prefix = rf"spotify:{kind}:|https?://open\.spotify\.com/(intl-\w+/)?{kind}/"
    if match := re.fullmatch(rf"({prefix})?(?P<id>[0-9A-Za-z]+)(\?.*)?", text.strip()):
        return match["id"]
    raise InvalidOption(f"--{kind}s {text}: not an id, URI or link of a {kind}")
