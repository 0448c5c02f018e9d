"""A made-up catalogue whose songs can be heard: its audio is rendered when asked for over HTTP.

Everything about a song follows from the seed and its number, so a longer catalogue begins with
the shorter one.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import ClassVar

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from numpy.random import Generator, default_rng

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Track, read_in_turn
from songray.catalogue.sources.synthetic import synthesis
from songray.catalogue.sources.synthetic.styles import STYLES

GENERATOR_VERSION = "1"  # changes with whatever in synthesis.py or styles.py can be heard
PAGE_SONGS = 100
PAGE_ARTISTS = 20  # two of each style
ALBUMS_PER_ARTIST = 3
PLAYLIST_EVERY_SONGS = 5
PLAYLIST_WINDOW_SONGS = 300  # how far back a playlist reaches
PLAYLIST_STYLE_SHARE = 0.85
HOST = "127.0.0.1"
SERVER_PROCESSES = 2
OPTIONS_VARIABLE = "SONGRAY_SYNTHETIC_SOURCE"  # the options on their way to the server's processes

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
    """Implements Source with generated songs in ten styles, which are their genres."""

    name: ClassVar[str] = "synthetic"
    tells_all: ClassVar[bool] = True

    songs: int = 200
    """How many songs the catalogue has; a larger number adds songs and changes none."""

    seed: int = 0
    """Another seed is another catalogue: other artists, titles and sounds."""

    audio_port: int = 8101
    """Port on 127.0.0.1 where the audio is served."""

    def pages(self) -> Iterator[Page]:
        """Blocks of 100 songs; the last one may be partial. Raises ValueError on impossible options."""
        if self.songs < 0 or self.seed < 0 or not 0 < self.audio_port < 65536:
            raise ValueError(
                f"{self}: --songs and --seed must not be negative, --audio-port must be 1 to 65535"
            )
        for first in range(0, self.songs, PAGE_SONGS):
            count = min(PAGE_SONGS, self.songs - first)
            version = f"{GENERATOR_VERSION}:{self.seed}:{self.audio_port}:{count}"
            yield Page(name=f"{self.seed}-{first // PAGE_SONGS:05d}", fingerprint=version)

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_in_turn(pages, self._read_block)

    def _read_block(self, page: Page) -> Iterator[Contents]:
        """The songs of a page with their artists, and the playlists made when they came out."""
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

    def track(self, song: synthesis.Song) -> Track:
        """What the catalogue says of a song."""
        random = default_rng((self.seed, 3, song.number))
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
            duration_seconds=synthesis.SECONDS,
            genres=[song.style],
            isrc=_isrc(self.seed, song.number),
            explicit=bool(random.random() < 0.06),
            audio_version=f"{GENERATOR_VERSION}:{self.seed}",
        )


@lru_cache(maxsize=64)
def _page_songs(seed: int, page: int) -> tuple[synthesis.Song, ...]:
    """All songs of a page, also where the catalogue ends before."""
    random = default_rng((seed, 6, page))
    styles = random.permutation(np.resize(list(STYLES), PAGE_ARTISTS)).tolist()
    popularity = random.lognormal(0, 0.5, PAGE_ARTISTS)
    places = random.choice(PAGE_ARTISTS, PAGE_SONGS, p=popularity / popularity.sum()).tolist()
    albums = random.integers(ALBUMS_PER_ARTIST, size=PAGE_SONGS).tolist()
    return tuple(
        synthesis.Song(
            number=page * PAGE_SONGS + index,
            style=styles[place],
            artist=(artist := page * PAGE_ARTISTS + place),
            album=artist * ALBUMS_PER_ARTIST + album,
        )
        for index, (place, album) in enumerate(zip(places, albums, strict=True))
    )


def song_of(seed: int, number: int) -> synthesis.Song:
    """The song with that number, in catalogues of any length."""
    page, index = divmod(number, PAGE_SONGS)
    return _page_songs(seed, page)[index]


def _track_id(seed: int, number: int) -> str:
    return f"synthetic:{seed}-{number:05d}"


def _isrc(seed: int, number: int) -> str:
    """Shaped like an ISRC; ZZ is no country, and the seed stands for the registrant."""
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
    """The playlist made when that song had come out, if any; it holds that song's page or earlier ones."""
    playlist, remainder = divmod(number + 1, PLAYLIST_EVERY_SONGS)
    if remainder:
        return
    random = default_rng((seed, 9, playlist))
    window = range(max(0, number + 1 - PLAYLIST_WINDOW_SONGS), number + 1)
    songs = [song_of(seed, int(known)) for known in random.permutation(window)]
    style = songs[0].style
    inside = [song.number for song in songs if song.style == style][: int(random.integers(5, 25))]
    outside = [song.number for song in songs if song.style != style]
    expected = len(inside) * (1 / PLAYLIST_STYLE_SHARE - 1)
    strangers = outside[: int(expected + random.random())]  # rounds at random, right on average
    name = _name_from(PLAYLISTS, random, style)
    for position, chosen in enumerate(random.permutation(inside + strangers).tolist()):
        yield PlaylistEntry(f"synthetic:playlist-{seed}-{playlist}", name, position, _track_id(seed, chosen))


def application() -> FastAPI:
    """The server's web application, made anew in each of its processes."""
    _end_with(os.getppid())
    source = _options_from_environment()
    app = FastAPI(openapi_url=None)

    @app.api_route("/{seed}/{number}.mp3", methods=["GET", "HEAD"])
    async def audio(seed: int, number: int) -> Response:
        if seed != source.seed or not 0 <= number < source.songs:
            raise HTTPException(404, f"no song {number} among {source.songs} with the seed {source.seed}")
        # Rendering holds up this process on purpose, and the connection ends with the answer:
        # so the next request goes to whichever process is free.
        rendered = synthesis.render(seed, song_of(seed, number))
        return Response(rendered, media_type="audio/mpeg", headers={"Connection": "close"})

    return app


def serve_forever(source: SyntheticSource) -> None:
    """Serves the audio in the foreground until interrupted; raises OSError if the port is taken."""
    _require_free_port(source.audio_port)
    os.environ[OPTIONS_VARIABLE] = json.dumps(asdict(source))
    uvicorn.run(
        "songray.catalogue.sources.synthetic.source:application",
        factory=True,
        host=HOST,
        port=source.audio_port,
        workers=SERVER_PROCESSES,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


@contextmanager
def served(source: SyntheticSource, deadline_seconds: float = 30) -> Iterator[str]:
    """Serves the audio from child processes while the context lasts, and gives the base URL.

    Raises OSError if the port is taken, RuntimeError if the server ended while starting, and
    TimeoutError if it does not answer in time.
    """
    _require_free_port(source.audio_port)
    server = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve_for; serve_for({os.getpid()})"],
        env={
            **os.environ,
            OPTIONS_VARIABLE: json.dumps(asdict(source)),
            "PYTHONPATH": os.pathsep.join(sys.path),  # it imports what this process can
        },
        start_new_session=True,  # Ctrl-C reaches only this process, which then ends the server
    )
    try:
        base_url = f"http://{HOST}:{source.audio_port}"
        _wait_until_answering(server, base_url, deadline_seconds)
        yield base_url
    finally:
        _end(server)


def _wait_until_answering(server: subprocess.Popen[bytes], base_url: str, deadline_seconds: float) -> None:
    give_up = time.monotonic() + deadline_seconds
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise RuntimeError(f"the server of synthetic audio at {base_url} ended while starting; see above")
        try:
            httpx.get(base_url, timeout=1)  # any answer will do, also 404
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(f"the server of synthetic audio at {base_url} gave no answer for {deadline_seconds} s")


def _end(server: subprocess.Popen[bytes], grace_seconds: float = 5) -> None:
    """The server ends its workers; what does not go in time is killed."""
    server.terminate()
    try:
        server.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # it leads a group of its own
        server.wait()


def _require_free_port(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sentence = f"--audio-port {port}: taken on {HOST}; end what listens there or choose another port"
        raise OSError(errno.EADDRINUSE, sentence) from error


def _options_from_environment() -> SyntheticSource:
    return SyntheticSource(**json.loads(os.environ[OPTIONS_VARIABLE]))


def serve_for(parent: int) -> None:
    """What served() runs in its child process."""
    _end_with(parent)
    serve_forever(_options_from_environment())


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed parent cannot end its children."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
