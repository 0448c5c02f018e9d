"""The real spotipy against a fake Spotify, read breadth-first as a crawl does."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest
import ray
from fakes import served
from fakes import spotify as fakes
from fakes.spotify import FakeSpotify, Playlist, artist_id, isrc, track_id
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Problem, Track
from songray.catalogue.sources.spotify.source import SpotifySource
from songray.errors import MissingInput
from songray.tables import TABLES

Serve = Callable[..., SpotifySource]
PREFIXES = itertools.count()
SECRETS = (fakes.CLIENT_SECRET, fakes.CLIENT_ID, fakes.TOKEN, "Basic ")


@pytest.fixture(scope="module")
def port(cluster: None) -> int:
    """One address for all fakes, and so one rate limit for their requests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def serve(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("SPOTIPY_CLIENT_ID", fakes.CLIENT_ID)
    monkeypatch.setenv("SPOTIPY_CLIENT_SECRET", fakes.CLIENT_SECRET)
    with ExitStack() as stack:

        def start(fake: FakeSpotify, port: int = port, **options: Any) -> SpotifySource:
            fake.prefix = f"/{next(PREFIXES)}"
            root = stack.enter_context(served(fake.application(), port)) + fake.prefix
            urls = {"spotify_url": f"{root}/v1/", "token_url": f"{root}/api/token"}
            return SpotifySource(**urls, **{"requests_per_second": 3000.0, **options})

        yield start


@dataclass
class Walk:
    read: dict[str, str | None] = field(default_factory=dict)  # fingerprints of the pages that are read
    depths: dict[str, int] = field(default_factory=dict)
    tracks: dict[str, Track] = field(default_factory=dict)
    artists: dict[str, Artist] = field(default_factory=dict)
    entries: list[PlaylistEntry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(problem.kind for problem in self.problems)

    def add(self, page: Page, contents: Contents) -> None:
        self.tracks |= {track.track_id: track for track in contents.tracks}
        self.artists |= {artist.artist_id: artist for artist in contents.artists}
        self.entries += contents.playlist_entries
        self.problems += contents.problems
        if contents.finished:
            self.read[page.name] = page.fingerprint
        else:
            self.unread.append(page.name)


def walk(source: SpotifySource, depth: int = 0, before: Walk | None = None) -> Walk:
    """Read all pages to a depth, level by level, without those that were read before."""
    result = Walk(read=dict(before.read) if before else {})
    level = [(page, 0) for page in source.pages()]
    while level:
        unread: dict[str, tuple[Page, int]] = {}
        for page, steps in level:
            changed = page.fingerprint is None or result.read.get(page.name, "none") != page.fingerprint
            if steps <= depth and changed and page.name not in result.unread:
                unread.setdefault(page.name, (page, steps))
        result.depths |= {name: steps for name, (_, steps) in unread.items()}
        level = []
        for page, contents in source.read([page for page, _ in unread.values()]):
            result.add(page, contents)
            level += [(link, result.depths[page.name] + link.step) for link in contents.pages]
    return result


def test_an_artist_is_read_breadth_first_and_nothing_is_requested_twice(serve: Serve) -> None:
    fake = FakeSpotify(artists=15)
    source = serve(fake, artists=(artist_id(0),))
    result = walk(source, depth=2)
    assert set(result.artists) == {f"spotify:artist:{artist_id(n)}" for n in range(7)}  # 0; 1, 2; 3 … 6
    assert result.artists[f"spotify:artist:{artist_id(4)}"].genres == ["genre 1"]
    assert len(result.tracks) == 7 * fake.albums * fake.tracks
    assert result.kinds.keys() == {"no_preview_url"} and not result.unread
    assert max(fake.requests.values()) == 1 and fake.requests.total() == len(result.read)
    assert fake.tokens == 1


def test_a_track_has_the_metadata_of_spotify(serve: Serve) -> None:
    result = walk(serve(FakeSpotify(), artists=(artist_id(3),)))
    assert result.tracks[f"spotify:{track_id(3, 1, 0)}"] == Track(
        track_id=f"spotify:{track_id(3, 1, 0)}",
        title="Track 0 of 1",
        location=f"https://p.scdn.co/mp3-preview/{3:020x}{1:010x}{0:010x}?cid=1",
        artist_ids=[f"spotify:artist:{artist_id(3)}", f"spotify:artist:{artist_id(4)}"],
        artist_names=["Artist 3", "Artist 4"],
        album_id=f"spotify:album:{fakes.album_id(3, 1)}",
        album="Album 1 of 3",
        release_date="1959-08",
        release_date_precision="month",
        duration_seconds=180.5,
        isrc=isrc(3, 1, 0),
        explicit=False,
        audio_version=track_id(3, 1, 0),
    )
    assert result.tracks[f"spotify:{track_id(3, 1, 1)}"].location is None


def test_reading_continues_without_what_development_mode_refuses(serve: Serve) -> None:
    fake = FakeSpotify(artists=4, albums=12, tracks=2, development=True)
    result = walk(serve(fake, artists=(artist_id(0),)), depth=1)
    # Related artists are refused: the other artists of the same tracks remain.
    assert set(result.artists) == {f"spotify:artist:{artist_id(n)}" for n in range(2)}
    assert len(result.tracks) == 2 * 12 * 2 and all(track.isrc for track in result.tracks.values())
    assert (result.kinds["no_related_artists"], result.kinds["no_top_tracks"]) == (1, 2)
    assert not result.unread and max(fake.requests.values()) == 1


def test_an_endpoint_that_refuses_repeatedly_is_no_longer_requested(serve: Serve) -> None:
    fake = FakeSpotify(artists=9, development=True)
    source = serve(fake, artists=(artist_id(0),))
    result = Walk()
    for name in ("albums?limit=50&offset=0", "top-tracks", "related-artists"):
        for artist in range(9):
            ((page, contents),) = source.read([Page(f"artist/{artist_id(artist)}/{name}")])
            result.add(page, contents)
            smaller = [page.name.replace("50", "10")] if name.startswith("albums") else []
            assert [link.name for link in contents.pages] == smaller
    assert result.kinds == {"no_top_tracks": 9, "no_related_artists": 9} and not result.unread
    requests = Counter(path.split("?")[0].split("/")[-1] for path in fake.requests)
    assert requests == {"albums": 3, "top-tracks": 3, "related-artists": 9}  # 404 may refuse a single artist


@pytest.mark.parametrize("development", [False, True])
def test_a_search_is_read_as_far_as_spotify_pages_it(serve: Serve, development: bool) -> None:
    fake = FakeSpotify(artists=50, albums=8, tracks=3, search_results=5000, development=development)
    result = walk(serve(fake, search=("genre:jazz year:1959",)))
    assert len(result.tracks) == 1000
    assert len(result.artists) == (0 if development else 43) and not result.unread
    assert bool(result.kinds["no_genres"]) is development
    searches = [path for path in fake.requests if path.startswith("search")]
    assert len(searches) == (101 if development else 20)


ODD = [track_id(0, 0, 0), None, "episode", "local", *(track_id(n % 7, n // 7 % 2, 2) for n in range(120))]


@pytest.mark.parametrize("development", [False, True])
def test_a_playlist_keeps_its_positions_and_other_items_are_problems(serve: Serve, development: bool) -> None:
    fake = FakeSpotify(playlists={"list1": Playlist("Morning: jazz", ODD)}, development=development)
    result = walk(serve(fake, playlists=("https://open.spotify.com/playlist/list1?si=x",)))
    assert sorted((entry.position, entry.track_id.removeprefix("spotify:")) for entry in result.entries) == [
        (position, entry) for position, entry in enumerate(ODD) if entry not in (None, "episode", "local")
    ]
    assert {(entry.playlist_id, entry.playlist) for entry in result.entries} == {
        ("spotify:playlist:list1", "Morning: jazz")
    }
    assert [result.kinds[kind] for kind in ("null_item", "episode", "local_file")] == [1, 1, 1]
    details = [problem.detail for problem in result.problems]
    assert any(detail.startswith("item 1 of playlist/list1/") for detail in details)


def test_only_a_playlist_that_changed_is_read_again(serve: Serve) -> None:
    playlist = Playlist("One", ODD[4:])
    fake = FakeSpotify(playlists={"list1": playlist})
    source = serve(fake, playlists=("list1",))
    first = walk(source)
    fake.requests.clear()
    second = walk(source, before=first)
    assert [path.split("?")[0] for path in fake.requests] == ["playlists/list1"] and not second.entries
    playlist.snapshot_id, playlist.entries = "snapshot2", playlist.entries[::-1]
    third = walk(source, before=second)
    assert len(third.entries) == len(playlist.entries)
    playlist.name = "Two"
    assert {entry.playlist for entry in walk(source, before=third).entries} == {"Two"}


def test_a_missing_or_refused_page_is_a_problem(serve: Serve) -> None:
    fake = FakeSpotify(playlists={"theirs": Playlist("T", ODD, owned=False)}, development=True)
    result = walk(serve(fake, playlists=("theirs", "gone"), artists=(artist_id(99),)))
    assert result.kinds == {"no_playlist_items": 1, "no_playlist": 1, "no_artist": 1}
    assert not result.unread


def test_a_malformed_item_of_a_batch_is_a_problem_and_the_others_are_read(serve: Serve) -> None:
    fake = FakeSpotify(artists=1, albums=1, tracks=3)
    good = json.dumps(fake.full_track(0, 0, 0))
    fake.inject("tracks", fakes.body(f'{{"tracks": [{good}, null, {{"id": "x", "name": 5}}]}}'))
    result = walk(serve(fake, artists=(artist_id(0),)))
    assert result.kinds["null_item"] == result.kinds["bad_item"] == 1
    assert f"spotify:{track_id(0, 0, 0)}" in result.tracks and not result.unread


@pytest.mark.parametrize(
    "fault",
    [
        fakes.refused(503),
        fakes.reset,
        fakes.slow(3.0),
        fakes.too_many(retry_after=0.3),
        fakes.too_many(reason="QUOTA_EXCEEDED"),
        fakes.body('{"id": "artist0'),
        fakes.body("<html>", 502),
    ],
    ids=["503", "reset", "slow", "429", "quota", "cut", "html"],
)
def test_a_retryable_failure_is_retried(serve: Serve, fault: fakes.Fault) -> None:
    fake = FakeSpotify(artists=1, albums=1)
    fake.inject(f"artists/{artist_id(0)}", fault)
    result = walk(serve(fake, artists=(artist_id(0),), timeout_seconds=0.5))
    assert len(result.tracks) == 3 and not result.unread
    assert fake.requests[f"artists/{artist_id(0)}"] == 2


def test_a_pause_of_hours_is_respected_and_the_pages_stay_unread(serve: Serve) -> None:
    fake = FakeSpotify()
    source = serve(fake, port=0, artists=tuple(artist_id(n) for n in range(5)))  # has a rate limit of its own
    fake.inject(f"artists/{artist_id(0)}", fakes.too_many(retry_after=20_000, reason="QUOTA_EXCEEDED"))
    first, *others = source.pages()
    ((_, contents),) = source.read([first])
    assert not contents.finished and "QUOTA_EXCEEDED" in contents.problems[0].detail and not contents.pages
    fake.requests.clear()
    rest = [contents for _, contents in source.read(others)]
    assert {problem.kind for contents in rest for problem in contents.problems} == {"rate_limited"}
    assert not any(contents.finished for contents in rest) and not fake.requests


def test_a_revoked_token_is_replaced(serve: Serve) -> None:
    fake = FakeSpotify()
    source = serve(fake, artists=(artist_id(0),))
    walk(source)
    fake.revoked = fake.tokens
    again = walk(source)
    assert len(again.tracks) == 6 and not again.unread
    assert fake.tokens == 2


def test_refused_credentials_raise_an_error_that_does_not_contain_them(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPOTIPY_CLIENT_SECRET", "wrongsecret")
    source = serve(FakeSpotify(), artists=(artist_id(0),))
    with caplog.at_level(logging.DEBUG), pytest.raises(MissingInput, match="invalid_client") as raised:
        walk(source)
    assert "SPOTIPY_CLIENT_SECRET" in str(raised.value)
    for secret in (*SECRETS, "wrongsecret"):
        assert secret not in str(raised.value) + repr(raised.value) + caplog.text
    monkeypatch.delenv("SPOTIPY_CLIENT_ID")
    with pytest.raises(ValueError, match="set SPOTIPY_CLIENT_ID and SPOTIPY_CLIENT_SECRET"):
        list(replace(source, timeout_seconds=1.0).pages())  # other options, so nothing is remembered


def test_credentials_reach_no_log_table_or_pickle(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSpotify(artists=2, development=True, playlists={"list1": Playlist("One", ODD)})
    fake.inject(f"artists/{artist_id(0)}", fakes.refused(500, "Bad"), fakes.reset)
    source = serve(fake, artists=(artist_id(0),), playlists=("list1", "gone"))
    for name in ("spotipy", "spotipy.client", "spotipy.oauth2", "urllib3"):
        caplog.set_level(logging.DEBUG, name)
    with caplog.at_level(logging.DEBUG):
        result = walk(source, depth=1)
    assert "/api/token" in caplog.text  # so the log works
    texts = [caplog.text, *capfd.readouterr(), repr(result), repr(source)]
    for secret in SECRETS:
        assert not [text for text in texts if secret in text]
        assert secret.encode() not in pickle.dumps((source, result))


@pytest.mark.slow
def test_a_worker_on_another_machine_needs_the_credentials_in_its_environment(serve: Serve) -> None:
    source = serve(FakeSpotify(), artists=(artist_id(0),))
    read = ray.remote(max_retries=0)(
        lambda source: [contents for _, contents in source.read(list(source.pages()))]
    )
    credentials = {"SPOTIPY_CLIENT_ID": fakes.CLIENT_ID, "SPOTIPY_CLIENT_SECRET": fakes.CLIENT_SECRET}
    (contents,) = ray.get(read.options(runtime_env={"env_vars": credentials}).remote(source))
    assert contents.artists and contents.finished
    with pytest.raises(ValueError, match="set SPOTIPY_CLIENT_ID"):
        ray.get(read.remote(source))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no start: name --search, --playlists or --artists"),
        ({"artists": ("spotify:track:x",)}, "--artists spotify:track:x"),
        ({"playlists": ("https://example.com/x",)}, "--playlists https://example.com/x"),
        ({"search": ("x", " ")}, "one of them is empty"),
        ({"search": ("x",), "requests_per_second": 0}, "must be above 0"),
    ],
)
def test_impossible_options_are_refused(serve: Serve, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(serve(FakeSpotify(), **options).pages())


FULL = FakeSpotify()
TRACKS = [FULL.full_track(0, 0, 0), FULL.full_track(0, 1, 1)]
ARTISTS = [FULL.full_artist(n) for n in range(2)]
BODIES: dict[str, tuple[str, Any]] = {
    "search?q=x&limit=50&offset=0": ("search", {"tracks": {"items": TRACKS, "total": 99}}),
    "playlist/x": ("playlists/x", {"snapshot_id": "1", "name": "X", "tracks": {"total": 2}}),
    "playlist/x/items?limit=50&offset=0": (
        "playlists/x/items", {"items": [{"item": track} for track in TRACKS], "total": 99}),
    "playlist/x/tracks?limit=100&offset=0": (
        "playlists/x/tracks", {"items": [{"track": track} for track in TRACKS], "total": 99}),
    "artist/x": ("artists/x", ARTISTS[0]),
    "artists?ids=x,y": ("artists", {"artists": ARTISTS}),
    "artist/x/albums?limit=50&offset=0": (
        "artists/x/albums", {"items": [FULL.full_album(0, 0), FULL.full_album(0, 1)], "total": 99}),
    "artist/x/top-tracks": ("artists/x/top-tracks", {"tracks": TRACKS}),
    "artist/x/related-artists": ("artists/x/related-artists", {"artists": ARTISTS}),
    "album/x/tracks?limit=50&offset=0": ("albums/x/tracks", {"items": TRACKS, "total": 99}),
    "tracks?ids=x,y": ("tracks", {"tracks": TRACKS}),
    "track/x": ("tracks/x", TRACKS[0]),
}  # by page: the path that it requests, and a valid body  # fmt: skip
HALF = "\ud800"  # of a surrogate pair
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(HALF),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
COLUMNS = pa.schema(
    {name: kind for name, kind in TABLES["tracks"].columns.items() if name in Track.__annotations__}
)


def damaged(valid: Any) -> st.SearchStrategy[Any]:
    """A valid body with anything in place of one part of it."""
    if not isinstance(valid, dict | list) or not valid:
        return ANYTHING
    places = list(range(len(valid)) if isinstance(valid, list) else valid)

    def damage(place: Any, part: Any) -> Any:
        copy = valid.copy()
        copy[place] = part
        return copy

    def at(place: Any) -> st.SearchStrategy[Any]:
        return st.builds(damage, st.just(place), ANYTHING | damaged(valid[place]))

    return st.one_of([at(place) for place in places])


def test_no_body_raises_and_a_malformed_item_affects_no_other(serve: Serve) -> None:
    fake = FakeSpotify()
    source = serve(fake, search=("x",))

    @settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking takes long
    @example({name: valid for name, (_, valid) in BODIES.items()} | {"track/x": TRACKS[0] | {"name": HALF}})
    @given(st.fixed_dictionaries({name: damaged(valid) for name, (_, valid) in BODIES.items()}))
    def check(bodies: dict[str, Any]) -> None:
        fake.faults.clear()
        for name, body in bodies.items():
            fake.inject(BODIES[name][0], fakes.body(json.dumps(body)))
        read = dict(source.read([Page(name) for name in bodies]))
        assert all(contents.finished for contents in read.values())
        json.dumps([asdict(contents) for contents in read.values()], ensure_ascii=False).encode()
        rows = [asdict(track) for contents in read.values() for track in contents.tracks]
        pa.Table.from_pylist(rows, COLUMNS)
        items = bodies["tracks?ids=x,y"].get("tracks")
        whole = [item for item in items if item in TRACKS] if isinstance(items, list) else []
        assert len(read[Page("tracks?ids=x,y")].tracks) >= len(whole)

    check()


def test_an_answer_that_is_nested_too_deeply_is_a_problem_of_its_page(serve: Serve) -> None:
    fake = FakeSpotify()
    source = serve(fake, search=("x",))
    for name in ("track/x", "artist/x"):
        fake.inject(BODIES[name][0], fakes.body("[" * 100_000 + "]" * 100_000))
    read = dict(source.read([Page("track/x"), Page("artist/x"), Page("tracks?ids=x,y")]))
    kinds = [problem.kind for name in ("track/x", "artist/x") for problem in read[Page(name)].problems]
    assert kinds == ["malformed"] * 2
    assert all(contents.finished for contents in read.values())
