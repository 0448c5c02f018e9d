"""Which style, artist and album each song of a synthetic catalogue has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import default_rng

from songray.catalogue.sources.synthetic.styles import STYLES

SONG_SECONDS = 30.0
PAGE_SONGS = 100
PAGE_ARTISTS = 20  # two of each style
ALBUMS_PER_ARTIST = 3


@dataclass(frozen=True)
class Song:
    """What determines the audio of a song, beside the seed; numbers count over the whole catalogue."""

    number: int
    style: str  # key of STYLES
    artist: int
    album: int


def song_of(seed: int, number: int) -> Song:
    """The song with that number, in a catalogue of any length."""
    page, index = divmod(number, PAGE_SONGS)
    return _page_songs(seed, page)[index]


@lru_cache(maxsize=64)
def _page_songs(seed: int, page: int) -> tuple[Song, ...]:
    """All songs of a page, also of one that the catalogue cuts short."""
    random = default_rng((seed, 6, page))
    styles = random.permutation(np.resize(list(STYLES), PAGE_ARTISTS)).tolist()
    popularity = random.lognormal(0, 0.5, PAGE_ARTISTS)
    places = random.choice(PAGE_ARTISTS, PAGE_SONGS, p=popularity / popularity.sum()).tolist()
    albums = random.integers(ALBUMS_PER_ARTIST, size=PAGE_SONGS).tolist()
    return tuple(
        Song(
            number=page * PAGE_SONGS + index,
            style=styles[place],
            artist=(artist := page * PAGE_ARTISTS + place),
            album=artist * ALBUMS_PER_ARTIST + album,
        )
        for index, (place, album) in enumerate(zip(places, albums, strict=True))
    )
