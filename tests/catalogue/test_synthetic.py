"""The generated catalogue and its audio, through the public functions and the real server."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import free_port
from hypothesis import given, settings
from hypothesis import strategies as st

from songray.catalogue.sources.base import Contents, Page, PlaylistEntry, Track
from songray.catalogue.sources.synthetic.server import served
from songray.catalogue.sources.synthetic.songs import Song, song_of
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.catalogue.sources.synthetic.styles import STYLES
from songray.catalogue.sources.synthetic.synthesis import SAMPLE_RATE, render, samples
from songray.errors import InvalidOption

PRECISIONS = {"year": r"\d{4}", "month": r"\d{4}-\d{2}", "day": r"\d{4}-\d{2}-\d{2}"}
HOLDS_A_SERVER = """
import sys, time
from songray.catalogue.sources.synthetic.server import served
from songray.catalogue.sources.synthetic.source import SyntheticSource
with served(SyntheticSource(songs=3, audio_port=int(sys.argv[1]))):
    print("ready", flush=True)
    time.sleep(60)
"""


def read_all(source: SyntheticSource) -> Contents:
    pieces = [piece for _, piece in source.read(list(source.pages()))]
    return Contents(
        tracks=[track for piece in pieces for track in piece.tracks],
        artists=[artist for piece in pieces for artist in piece.artists],
        playlist_entries=[entry for piece in pieces for entry in piece.playlist_entries],
    )


def processes_of_group(group: int) -> list[int]:
    """The processes of a process group that still run."""
    running = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member_of) == group and state != "Z":
            running.append(int(stat.parent.name))
    return running


def children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(number) for number in text.split()]


def ended(group: int, deadline_seconds: float = 8) -> bool:
    deadline = time.monotonic() + deadline_seconds
    while processes_of_group(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of_group(group)


@pytest.fixture(scope="module")
def catalogue() -> Contents:
    return read_all(SyntheticSource(songs=400))


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """Of a server, whose processes end with its context."""
    before = set(children(os.getpid()))
    with served(SyntheticSource(songs=5, audio_port=free_port())) as url:
        (server,) = set(children(os.getpid())) - before
        assert len(processes_of_group(server)) >= 3
        yield url
    assert ended(server)
    with pytest.raises(httpx.TransportError):
        httpx.get(url, timeout=1)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), songs=st.integers(0, 250), more=st.integers(0, 120))
def test_a_longer_catalogue_begins_with_the_shorter_one(seed: int, songs: int, more: int) -> None:
    short, long = (SyntheticSource(songs=count, seed=seed) for count in (songs, songs + more))
    small, large = read_all(short), read_all(long)
    assert large.tracks[:songs] == small.tracks and len(small.tracks) == songs
    assert large.playlist_entries[: len(small.playlist_entries)] == small.playlist_entries
    assert {artist.artist_id for artist in small.artists} <= {artist.artist_id for artist in large.artists}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 250), st.integers(1, 250))
def test_a_fingerprint_changes_when_and_only_when_the_page_does(one: int, other: int) -> None:
    pages = {page.name: page for page in SyntheticSource(songs=one).pages()}
    for page in SyntheticSource(songs=other).pages():
        before = pages.get(page.name, page)
        same = _contents(songs=one, page=before) == _contents(songs=other, page=page)
        assert (before.fingerprint == page.fingerprint) == (same or page.name not in pages)


def _contents(songs: int, page: Page) -> list[Contents]:
    return [contents for _, contents in SyntheticSource(songs=songs).read([page])]


def test_seed_and_port_change_the_fingerprint() -> None:
    def first(source: SyntheticSource) -> Page:
        return next(source.pages())

    sources = SyntheticSource(), SyntheticSource(seed=1), SyntheticSource(audio_port=8102)
    assert len({first(source).fingerprint for source in sources}) == 3


@pytest.mark.parametrize("options", [{"songs": -1}, {"seed": -1}, {"audio_port": 0}, {"audio_port": 65536}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="--" + next(iter(options)).replace("_", "-")):
        list(SyntheticSource(**options).pages())


def test_tracks_are_complete_and_differ(catalogue: Contents) -> None:
    tracks = catalogue.tracks
    for ids in ([track.track_id for track in tracks], [track.isrc for track in tracks]):
        assert len(set(ids)) == len(tracks) == 400
    assert tracks[7].track_id == "synthetic:0-00007"
    assert tracks[7].location == "http://127.0.0.1:8101/0/7.mp3"
    assert all(re.fullmatch("[A-Z]{2}[A-Z0-9]{3}[0-9]{7}", track.isrc or "") for track in tracks)
    assert all(track.genres[0] in STYLES and track.recording is None for track in tracks)
    assert len({track.title for track in tracks}) > 200
    assert {track.explicit for track in tracks} == {True, False}
    assert {genre for track in tracks for genre in track.genres} == set(STYLES)


def test_other_seeds_share_no_ids() -> None:
    one, other = (read_all(SyntheticSource(songs=50, seed=seed)) for seed in (0, 1))
    for kind in ("track_id", "isrc", "album_id", "location", "audio_version"):
        first, second = ({getattr(track, kind) for track in read.tracks} for read in (one, other))
        assert not first & second
    assert not {artist.artist_id for artist in one.artists} & {artist.artist_id for artist in other.artists}


def test_dates_match_their_precision(catalogue: Contents) -> None:
    for track in catalogue.tracks:
        assert re.fullmatch(PRECISIONS[track.release_date_precision or ""], track.release_date or "")
    assert {track.release_date_precision for track in catalogue.tracks} == set(PRECISIONS)


def test_an_album_has_one_artist_name_and_date_and_an_artist_one_style(catalogue: Contents) -> None:
    def album(track: Track) -> tuple[object, ...]:
        return track.album_id, track.album, track.release_date, *track.artist_ids

    albums = {album(track) for track in catalogue.tracks}
    assert len(albums) == len({track.album_id for track in catalogue.tracks})
    artists = {artist.artist_id: artist for artist in catalogue.artists}
    assert len(artists) == len(catalogue.artists)
    for track in catalogue.tracks:
        artist = artists[track.artist_ids[0]]
        assert ([artist.name], artist.genres) == (track.artist_names, track.genres)


def test_playlists_contain_tracks_of_the_catalogue_in_order_and_mostly_of_one_style(
    catalogue: Contents,
) -> None:
    styles = {track.track_id: track.genres[0] for track in catalogue.tracks}
    playlists: dict[str, list[PlaylistEntry]] = {}
    for entry in catalogue.playlist_entries:
        playlists.setdefault(entry.playlist_id, []).append(entry)
    for entries in playlists.values():
        assert [entry.position for entry in entries] == list(range(len(entries)))
        assert len({entry.track_id for entry in entries}) == len(entries)
        assert len({entry.playlist for entry in entries}) == 1
    counts = [Counter(styles[entry.track_id] for entry in entries) for entries in playlists.values()]
    commonest = sum(count.most_common(1)[0][1] for count in counts)
    assert 0.8 <= commonest / len(catalogue.playlist_entries) <= 0.9
    assert len(playlists) >= 40


def test_playlists_of_a_page_need_no_later_page() -> None:
    source, tracks = SyntheticSource(songs=300), set()
    for page in source.pages():
        for _, piece in source.read([page]):
            tracks |= {track.track_id for track in piece.tracks}
            assert {entry.track_id for entry in piece.playlist_entries} <= tracks


@pytest.mark.parametrize("style", STYLES)
def test_every_style_sounds_for_half_a_minute(style: str) -> None:
    for number in range(2):
        sound = samples(5, Song(number, style, number, number))
        assert sound.shape == (30 * SAMPLE_RATE,) and sound.dtype == np.float32
        assert np.isfinite(sound).all() and np.abs(sound).max() < 0.9
        seconds = sound.reshape(30, -1)
        assert (np.sqrt(np.mean(seconds**2, axis=1)) > 0.005).mean() > 0.9  # no long silence
        assert -24 < 20 * np.log10(sound.std()) < -12


def test_a_song_is_always_the_same_mp3() -> None:
    first, again, other = render(0, song_of(0, 1)), render(0, song_of(0, 1)), render(1, song_of(0, 1))
    assert first == again != other
    decoded, rate = soundfile.read(io.BytesIO(first))
    assert rate == SAMPLE_RATE and decoded.ndim == 1 and abs(len(decoded) / rate - 30) < 0.2
    assert np.isfinite(decoded).all() and 0.05 < np.abs(decoded).max() < 1


def test_the_server_returns_the_songs_at_their_locations(base_url: str) -> None:
    source = SyntheticSource(songs=5, audio_port=int(base_url.rsplit(":", 1)[1]))
    location = read_all(source).tracks[3].location or ""
    get, head = httpx.get(location), httpx.head(location)
    assert get.content == render(0, song_of(0, 3))
    for response in (get, head):
        assert response.status_code == 200 and response.headers["Content-Type"] == "audio/mpeg"
        assert int(response.headers["Content-Length"]) == len(get.content)
    assert head.content == b""


@pytest.mark.parametrize("path", ["0/5.mp3", "0/-1.mp3", "1/0.mp3", "0/0.wav", ""])
def test_unknown_songs_are_not_found(base_url: str, path: str) -> None:
    assert httpx.get(f"{base_url}/{path}").status_code == 404


def test_a_port_in_use_is_refused(base_url: str) -> None:
    port = int(base_url.rsplit(":", 1)[1])
    with (
        pytest.raises(InvalidOption, match=f"--audio-port {port}: in use"),
        served(SyntheticSource(audio_port=port)),
    ):
        pass


@pytest.mark.slow
def restore_sigint() -> None:
    """A shell that starts these tests in the background has SIGINT ignored in all of its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_servers_processes_end_with_their_parent() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parents = {
        sent: subprocess.Popen(
            [sys.executable, "-c", HOLDS_A_SERVER, str(free_port())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            preexec_fn=restore_sigint,
        )
        for sent in (signal.SIGKILL, signal.SIGINT)
    }
    for sent, parent in parents.items():
        assert parent.stdout and parent.stdout.readline() == b"ready\n"
        (server,) = children(parent.pid)
        os.killpg(parent.pid, sent)  # the whole group, as the terminal does
        _, stderr = parent.communicate(timeout=20)  # returns when no process holds the pipes
        assert ended(server)
        assert stderr.count(b"Traceback") == (sent == signal.SIGINT)  # the parent's own
