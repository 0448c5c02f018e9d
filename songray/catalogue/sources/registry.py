"""All sources by name, and the services that locate the audio of tracks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from songray.catalogue.sources.base import AudioLocation, Source
from songray.catalogue.sources.deezer import DeezerApi, DeezerSource
from songray.catalogue.sources.folder import FolderSource
from songray.catalogue.sources.itunes import ItunesApi, ItunesSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.catalogue.sources.spotify.source import SpotifySource
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.errors import FetchError
from songray.library import Row

if TYPE_CHECKING:
    import aiohttp

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (FolderSource, ManifestSource, DeezerSource, ItunesSource, SpotifySource, SyntheticSource)
}
IsrcSource = Literal["deezer", "none"]
DEFAULT_ISRC_SOURCE: IsrcSource = "deezer"
SearchableSource = Literal["deezer", "itunes"]
SEARCHABLE: tuple[str, ...] = get_args(SearchableSource)


@dataclass(frozen=True)
class AudioServices:
    """The services on the web that can be searched, or that locate audio."""

    deezer: DeezerApi = field(default_factory=DeezerApi)
    itunes: ItunesApi = field(default_factory=ItunesApi)

    async def locate(self, track: Row, session: aiohttp.ClientSession, isrc_source: str) -> AudioLocation:
        """The location of a track's audio now, from its `location`, `isrc` and `source`.

        A track without a location is looked up at `isrc_source` by its ISRC. Raises FetchError, of the kind
        "no_location" where there is neither.
        """
        if stored := self.stored_location(track):
            return stored
        location = track["location"] or ""
        if not location and track["isrc"] and isrc_source != "none":
            location = f"{isrc_source}:isrc:{track['isrc']}"
        if not location:
            detail = "the catalogue gives neither a location of the audio nor an ISRC"
            raise FetchError("no_location", detail, retryable=True)  # a later crawl may add one
        return await self.deezer.locate(session, location.partition(":")[2])

    def stored_location(self, track: Row) -> AudioLocation | None:
        """The location that the catalogue itself gives; None where a service has to be asked."""
        location = track["location"] or ""
        if not location or location.partition(":")[0] == DeezerSource.name:
            return None
        source = SOURCES.get(track["source"])
        return AudioLocation(location, is_public=source is not None and source.is_public)

    def search(self, name: SearchableSource, words: str) -> Source:
        """A source whose pages are the results of a search."""
        searches: dict[str, Source] = {
            "deezer": DeezerSource(search=(words,), api=self.deezer),
            "itunes": ItunesSource(search=(words,), api=self.itunes),
        }
        return searches[name]

    @property
    def preview_hosts(self) -> tuple[str, ...]:
        """The hosts, and the domains below them, from which previews may be fetched."""
        return self.deezer.deezer_preview_hosts + self.itunes.itunes_preview_hosts
