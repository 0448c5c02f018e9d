"""A generated catalogue, whose audio server.py renders on request.

Everything about a song follows from the seed and its number, so a longer catalogue begins with the shorter
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator, default_rng

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Track
from songray.catalogue.sources.reading import read_sequentially
from songray.catalogue.sources.synthetic.songs import PAGE_SONGS, SONG_SECONDS, Song, song_of
from songray.catalogue.sources.tonality import PITCH_CLASSES
from songray.errors import InvalidOption

GENERATOR_VERSION = "1"  # changes with every change of the rendered audio
METADATA_VERSION = "2"  # changes with every change of what the catalogue states
PLAYLIST_EVERY_SONGS = 5
PLAYLIST_WINDOW_SONGS = 300  # a playlist contains only the latest songs
PLAYLIST_STYLE_SHARE = 0.85
LICENSE = "https://creativecommons.org/publicdomain/zero/1.0/"
MAJOR_THIRD = 4  # semitones above the tonic
HOST = "127.0.0.1"

FIRST_SYLLABLES = ("Bel", "Cor", "Dra", "Fen", "Gal", "Hol", "Jor", "Kel", "Lum", "Mor", "Nev", "Osk", "Pell",
                   "Quil", "Ras", "Sel", "Tam", "Ul", "Vash", "Wen", "Yor", "Zel")  # fmt: skip
LAST_SYLLABLES = ("adine", "anth", "arro", "eth", "ewyn", "iddo", "ildra", "imar", "ocks", "olane", "onde",
                  "oora", "ump", "undi", "ystra")  # fmt: skip
ADJECTIVES = ("Amber", "Borrowed", "Broken", "Distant", "Early", "Electric", "Empty", "Golden", "Hollow",
              "Last", "Little", "Paper", "Quiet", "Restless", "Second", "Slow", "Winter")  # fmt: skip
NOUNS = ("Afternoon", "Balcony", "Canal", "Ember", "Ferry", "Garden", "Harbour", "Lantern", "Meridian",
         "Orchard", "Postcard", "Rain", "Satellite", "Signal", "Staircase", "Tide", "Window")  # fmt: skip
TITLES = ("{adjective} {noun}", "{noun} for {place}", "The {adjective} {noun}", "{place}",
          "{noun} and {noun2}", "No More {noun}", "{adjective} in {place}",
          "Before the {noun}", "{noun}, {adjective}")  # fmt: skip
ALBUMS = ("{adjective} {noun}", "{place}", "Songs from {place}", "{noun} Season", "The {noun} Sessions")
ARTISTS = ("{place}", "{place} {family}", "The {family}s", "{family} & {place}", "{adjective} {family}")
PLAYLISTS = ("{style} for the {noun}", "{adjective} {style}", "{noun} {style} Mix", "Mostly {style}: {noun}")


@dataclass(frozen=True)
class SyntheticSource:
    """Generated songs in ten styles, which are their genres."""

    name: ClassVar[str] = "synthetic"
    is_complete: ClassVar[bool] = True
    is_public: ClassVar[bool] = False

    songs: int = 200
    """Number of songs; a larger number adds songs and changes none."""

    seed: int = 0
    """Seed of the catalogue: another seed gives other artists, titles and audio."""

    audio_port: int = 8101
    """Port on 127.0.0.1 at which the audio is served."""

    def pages(self) -> Iterator[Page]:
        """Blocks of 100 songs; the last one may be shorter. Raises InvalidOption."""
        if self.songs < 0 or self.seed < 0 or not 0 < self.audio_port < 65536:
            raise InvalidOption(
                f"{self}: --songs and --seed must not be negative, --audio-port must be 1 to 65535"
            )
        for first in range(0, self.songs, PAGE_SONGS):
            count = min(PAGE_SONGS, self.songs - first)
            version = f"{GENERATOR_VERSION}.{METADATA_VERSION}:{self.seed}:{self.audio_port}:{count}"
            yield Page(name=f"{self.seed}-{first // PAGE_SONGS:05d}", fingerprint=version)

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_sequentially(pages, self._read_block)

    def _read_block(self, page: Page) -> Iterator[Contents]:
        """The songs of a page with their artists, and the playlists that end with them."""
        first = int(page.name.split("-")[1]) * PAGE_SONGS
        numbers = range(first, min(first + PAGE_SONGS, self.songs))
        tracks = [self.track(song_of(self.seed, number)) for number in numbers]
        artists = {
            artist_id: Artist(artist_id, track.artist_names[0], track.genres)
            for track in tracks
            for artist_id in track.artist_ids
        }
        entries = [entry for number in numbers for entry in _playlist_after(self.seed, number)]
        yield Contents(tracks, list(artists.values()), entries)

    def track(self, song: Song) -> Track:
        """The metadata of a song."""
        from songray.catalogue.sources.synthetic.synthesis import tempo_and_key  # loads PyAV

        random = default_rng((self.seed, 3, song.number))
        tempo_bpm, key = tempo_and_key(self.seed, song)
        release_date, precision = _album_release(self.seed, song.album)
        return Track(
            track_id=_track_id(self.seed, song.number),
            title=_name_from(TITLES, random),
            location=f"http://{HOST}:{self.audio_port}/{self.seed}/{song.number}.mp3",
            artist_ids=[f"synthetic:artist-{self.seed}-{song.artist}"],
            artist_names=[_name_from(ARTISTS, default_rng((self.seed, 4, song.artist)))],
            album_id=f"synthetic:album-{self.seed}-{song.album}",
            album=_name_from(ALBUMS, default_rng((self.seed, 5, song.album))),
            release_date=release_date,
            release_date_precision=precision,
            duration_seconds=SONG_SECONDS,
            genres=[song.style],
            isrc=_isrc(self.seed, song.number),
            explicit=bool(random.random() < 0.06),
            tempo_bpm=round(tempo_bpm, 2),
            key=PITCH_CLASSES[key.tonic],
            mode="major" if MAJOR_THIRD in key.scale else "minor",
            license=LICENSE,
            audio_version=f"{GENERATOR_VERSION}:{self.seed}",
        )


def _track_id(seed: int, number: int) -> str:
    return f"synthetic:{seed}-{number:05d}"


def _isrc(seed: int, number: int) -> str:
    """In the format of an ISRC: ZZ is the code of no country, and the registrant is the seed."""
    registrant = np.base_repr(seed % 36**3, 36).zfill(3)
    return f"ZZ{registrant}{number // 100_000 % 100:02d}{number % 100_000:05d}"


def _album_release(seed: int, album: int) -> tuple[str, str]:
    """Date and its precision."""
    random = default_rng((seed, 8, album))
    year, month, day = (int(random.integers(*bounds)) for bounds in ((1965, 2026), (1, 13), (1, 29)))
    dates = {"year": f"{year}", "month": f"{year}-{month:02d}", "day": f"{year}-{month:02d}-{day:02d}"}
    precision = str(random.choice(list(dates), p=[0.3, 0.2, 0.5]))
    return dates[precision], precision


def _name_from(patterns: tuple[str, ...], random: Generator, style: str = "") -> str:
    nouns = random.choice(NOUNS, 2, replace=False)
    place, family = (
        str(random.choice(FIRST_SYLLABLES)) + str(random.choice(LAST_SYLLABLES)) for _ in range(2)
    )
    return str(random.choice(patterns)).format(
        adjective=random.choice(ADJECTIVES), noun=nouns[0], noun2=nouns[1],
        place=place, family=family, style=style.title(),
    )  # fmt: skip


def _playlist_after(seed: int, number: int) -> Iterator[PlaylistEntry]:
    """The playlist that ends with this song, if any; it contains no song of a later page."""
    playlist, remainder = divmod(number + 1, PLAYLIST_EVERY_SONGS)
    if remainder:
        return
    random = default_rng((seed, 9, playlist))
    window = range(max(0, number + 1 - PLAYLIST_WINDOW_SONGS), number + 1)
    songs = [song_of(seed, int(song)) for song in random.permutation(window)]
    style = songs[0].style
    inside = [song.number for song in songs if song.style == style][: int(random.integers(5, 25))]
    outside = [song.number for song in songs if song.style != style]
    expected = len(inside) * (1 / PLAYLIST_STYLE_SHARE - 1)
    others = outside[: int(expected + random.random())]  # random rounding, unbiased
    name = _name_from(PLAYLISTS, random, style)
    for position, chosen in enumerate(random.permutation(inside + others).tolist()):
        yield PlaylistEntry(f"synthetic:playlist-{seed}-{playlist}", name, position, _track_id(seed, chosen))
