"""All sources by name."""

from songray.sources.base import Source
from songray.sources.deezer import DeezerSource
from songray.sources.folder import FolderSource
from songray.sources.itunes import ItunesSource
from songray.sources.manifest import ManifestSource
from songray.sources.spotify import SpotifySource
from songray.sources.synthetic import SyntheticSource

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (FolderSource, ManifestSource, DeezerSource, ItunesSource, SpotifySource, SyntheticSource)
}
