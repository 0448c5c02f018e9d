"""All sources by name."""

from songray.catalogue.sources.base import Source
from songray.catalogue.sources.deezer import DeezerSource
from songray.catalogue.sources.folder import FolderSource
from songray.catalogue.sources.itunes import ItunesSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.catalogue.sources.spotify.source import SpotifySource
from songray.catalogue.sources.synthetic.source import SyntheticSource

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (FolderSource, ManifestSource, DeezerSource, ItunesSource, SpotifySource, SyntheticSource)
}
