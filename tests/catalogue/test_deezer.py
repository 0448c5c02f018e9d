from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import aiohttp
import pyarrow as pa
import pytest
import ray
from aiohttp.web import Application, Request, Response, json_response
from fakes import served
from fakes.deezer import GENRES, FakeDeezer, isrc
from hypothesis import given
from hypothesis import strategies as st

from songray import web
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.base import AudioLocation, Contents, Page
from songray.catalogue.sources.deezer import MAX_TOTAL, DeezerApi, DeezerSource
from songray.catalogue.sources.reading import PIECES
from songray.errors import FetchError
from songray.library import Library

pytestmark = pytest.mark.usefixtures("cluster")


@contextmanager
def deezer(**options: Any) -> Iterator[tuple[FakeDeezer, DeezerApi]]:
    fake = FakeDeezer(**options)
    with served(fake.application()) as url:
        yield fake, DeezerApi(url, deezer_requests_per_second=10_000, deezer_pause_seconds=0.1)


class Walk:
    """The contents of a source, breadth-first to a depth, without pages whose fingerprint is as before."""

    def __init__(self, source: DeezerSource, depth: int = 0, before: Walk | None = None) -> None:
        self.all = Contents()
        self.fingerprints: dict[str, str | None] = dict(before.fingerprints) if before else {}
        self.unread: list[str] = []
        queue = [(page, page.step) for page in source.pages()]
        while queue := [(page, at) for page, at in queue if at <= depth and self._is_new(page)]:
            depths = {page.name: at for page, at in queue}
            next_level = {}
            for page, contents in source.read([page for page, _ in queue]):
                self._take(page, contents)
                for link in contents.pages:
                    next_level.setdefault(link.name, (link, depths[page.name] + link.step))
            queue = list(next_level.values())

    def _is_new(self, page: Page) -> bool:
        before = self.fingerprints.get(page.name, "unread")
        return page.fingerprint is None or before != page.fingerprint

    def _take(self, page: Page, contents: Contents) -> None:
        for name in ("tracks", "artists", "playlist_entries", "related_artists", "problems"):
            getattr(self.all, name).extend(getattr(contents, name))
        if contents.finished:
            self.fingerprints[page.name] = page.fingerprint
        else:
            self.unread.append(page.name)


def track_ids(contents: Contents) -> list[str]:
    return [track.track_id for track in contents.tracks]


def test_related_artists_are_followed_breadth_first_to_the_depth() -> None:
    with deezer() as (fake, api):
        walk = Walk(DeezerSource(artists=(1,), api=api), depth=2)
    reached = {1, *fake.related(1)}
    reached |= {other for artist in fake.related(1) for other in fake.related(artist)}
    expected = {f"deezer:{song}" for artist in reached for song in fake.songs(artist)[:5]}
    assert set(track_ids(walk.all)) == expected
    assert not walk.all.problems
    related = [path for path in fake.faults.paths if "/related" in path]
    assert len(related) == 1 + len(fake.related(1))  # none at the last depth
    assert max(Counter(fake.faults.paths).values()) == 1
    names = {artist.artist_id: artist.name for artist in walk.all.artists}
    assert names["deezer:artist:1"] == "Artist 1"
    pairs = {(pair.artist_id, pair.related_id) for pair in walk.all.related_artists}
    assert {other for artist, other in pairs if artist == "deezer:artist:1"} == {
        f"deezer:artist:{number}" for number in fake.related(1)
    }


def test_a_playlist_is_read_again_only_when_it_has_changed() -> None:
    with deezer() as (fake, api):
        source = DeezerSource(playlists=(230,), api=api)
        walk = Walk(source)
        entries = sorted(walk.all.playlist_entries, key=lambda entry: entry.position)
        assert [entry.position for entry in entries] == list(range(230))
        assert [entry.track_id for entry in entries] == [f"deezer:{n}" for n in fake.playlist_songs(230)]
        assert {(entry.playlist_id, entry.playlist) for entry in entries} == {
            ("deezer:playlist:230", "Playlist #230: this & more?")
        }
        assert len(fake.faults.paths) == len(set(fake.faults.paths)) == 4
        again = Walk(source, before=walk)
        assert fake.faults.paths[4:] == ["/playlist/230?limit=100"]
        fake.edits[230] = 1
        changed = Walk(source, before=again)
        assert len(fake.faults.paths) == 9
    entries = {entry.position: entry.track_id for entry in changed.all.playlist_entries}
    assert [entries[position] for position in range(230)] == [f"deezer:{n}" for n in fake.playlist_songs(230)]


def test_an_album_has_genres_isrc_and_dates() -> None:
    with deezer() as (fake, api):
        fake.without_preview.add(4202)
        fake.unreadable.add(4203)
        walk = Walk(DeezerSource(albums=(41, 42), api=api))
    first = next(track for track in walk.all.tracks if track.track_id == "deezer:4105")
    assert (first.title, first.isrc, first.explicit) == ("Song 4105", isrc(4105), True)
    assert (first.album_id, first.album, first.genres) == ("deezer:album:41", "Album 41", ["Jazz"])
    assert (first.release_date, first.release_date_precision) == ("2001-06-15", "day")
    assert (first.artist_ids, first.artist_names) == (["deezer:artist:4"], ["Artist 4"])
    assert (first.location, first.audio_version, first.duration_seconds) == ("deezer:4105", "4105", 265.0)
    second = {track.track_id: track for track in walk.all.tracks if track.album == "Album 42"}
    assert second["deezer:4201"].release_date is None  # 0000-00-00
    assert [number for number in range(4201, 4213) if not second[f"deezer:{number}"].location] == [4202, 4203]


def test_a_discography_is_all_albums_of_an_artist() -> None:
    with deezer() as (fake, api):
        walk = Walk(DeezerSource(artists=(7,), discography=True, api=api))
    assert sorted(track_ids(walk.all)) == [f"deezer:{song}" for song in fake.songs(7)]
    assert all(track.isrc and track.genres for track in walk.all.tracks)


def test_all_results_of_a_search_are_read() -> None:
    with deezer() as (fake, api):
        walk = Walk(DeezerSource(search=('artist:"Artist 7"', "nothing"), api=api))
    assert len(walk.all.tracks) == len(fake.related(7)) * 24 + 24
    assert walk.all.tracks[0].isrc is None
    assert max(Counter(fake.faults.paths).values()) == 1


def test_charts_and_genres_link_to_their_items() -> None:
    with deezer() as (_, api):
        source = DeezerSource(charts=(0,), api=api)
        assert len(Walk(source).all.tracks) == 10
        deeper = Walk(source, depth=1)
        assert {entry.playlist_id for entry in deeper.all.playlist_entries} == {"deezer:playlist:30"}
        assert "deezer:1112" in track_ids(deeper.all)  # the last of an album
        genre = Walk(DeezerSource(genres=(list(GENRES)[1],), api=api))
        assert "deezer:artist:7" in {artist.artist_id for artist in genre.all.artists}
        assert "deezer:701" not in track_ids(genre.all)
        assert "deezer:7101" in track_ids(genre.all)


def test_a_retryable_failure_is_retried_and_nothing_is_lost() -> None:
    faults = ["quota", "busy", "500", "reset", "malformed", "cut", "html", "429, a moment"]
    with deezer() as (fake, api):
        for artist, fault in enumerate(faults, 1):
            fake.faults.queues[f"/artist/{artist}/top"] = [fault]
        walk = Walk(DeezerSource(artists=tuple(range(1, len(faults) + 1)), api=api))
        requests = Counter(fake.faults.paths)
    assert not walk.all.problems
    assert not walk.unread
    assert len(set(track_ids(walk.all))) == 5 * len(faults)
    assert set(requests.values()) == {2}


def test_a_permanent_failure_is_a_problem_of_its_page() -> None:
    with deezer() as (fake, api):
        fake.faults.queues |= {"/artist/2/top": ["404"], "/artist/3/top": ["odd_error"]}
        walk = Walk(DeezerSource(artists=(1, 2, 3, 101), playlists=(30,), api=api))
    kinds = Counter(problem.kind for problem in walk.all.problems)
    assert kinds == {"http_404": 1, "deezer_500": 1, "no_data": 1}
    (no_data,) = [problem.detail for problem in walk.all.problems if problem.kind == "no_data"]
    assert no_data.startswith("artist/101/top: ")
    assert not walk.unread
    assert len(walk.all.tracks) == 5 + 30


def test_a_pause_of_a_day_is_respected_and_the_pages_stay_unread() -> None:
    with deezer() as (fake, api):
        fake.faults.queues["/artist/1/top"] = ["429, a day"]
        source = DeezerSource(artists=(1,), api=api)
        first, second = Walk(source), Walk(replace(source, artists=(2,)))
        end_pause()
        (refused,), (limited,) = first.all.problems, second.all.problems
        assert (refused.kind, refused.detail[:12]) == ("http_429", "artist/1/top")
        assert (limited.kind, limited.detail[:12]) == ("rate_limited", "artist/2/top")
        assert first.unread == ["artist/1/top"]
        assert len(fake.faults.paths) == 1
        third = Walk(source, before=first)
    assert len(third.all.tracks) == 5


def end_pause() -> None:
    """Restart the rate limiter, which outlives a test."""
    limiter = web.rate_limiter("deezer")
    ray.kill(limiter, no_restart=False)
    while ray.get(limiter.pause_seconds.remote("deezer")) > 0:
        time.sleep(0.05)


async def _odd_items(request: Request) -> Response:
    episode = {"id": 5, "type": "episode", "title": "Talk"}
    return json_response({"data": [episode, {"id": 6, "type": "track"}, "seven"], "total": 3})


async def _odd_list(request: Request) -> Response:
    return json_response({"tracks": []})


def test_a_response_of_unknown_shape_is_a_problem() -> None:
    with deezer() as (fake, api):
        fake.faults.handlers |= {"odd_items": _odd_items, "odd_list": _odd_list}
        fake.faults.queues |= {"/artist/1/top": ["odd_items"], "/artist/2/top": ["odd_list"]}
        walk = Walk(DeezerSource(artists=(1, 2, 3), api=api))
    assert len(walk.all.tracks) == 5
    kinds = Counter(problem.kind for problem in walk.all.problems)
    assert kinds == {"bad_item": 3, "malformed": 1}
    assert walk.all.problems[0].detail.startswith("item 0 of artist/1/top: ")
    assert walk.unread == ["artist/2/top"]


def with_session(use: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Any]], **deadlines: float) -> Any:
    async def open_and_use() -> Any:
        async with web.session(**deadlines) as session:
            return await use(session)

    return asyncio.run(open_and_use())


async def _status_and_body(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with session.get(url) as response:
        return response.status, await response.read()


def test_a_preview_is_located_by_id_and_by_isrc_and_its_link_expires() -> None:
    with deezer(link_seconds=0.5) as (_, api):

        async def use(session: aiohttp.ClientSession) -> None:
            by_id = await api.locate(session, "4105")
            by_isrc = await api.locate(session, f"isrc:{isrc(4105)}")
            assert by_id.audio_id == by_isrc.audio_id == "deezer:4105"
            assert by_id.is_public and by_id.expires
            status, body = await _status_and_body(session, by_isrc.url)
            assert (status, body[:3]) == (200, b"ID3")
            await asyncio.sleep(0.6)
            assert (await _status_and_body(session, by_isrc.url))[0] == 403
            renewed = await api.locate(session, "4105")
            assert (await _status_and_body(session, renewed.url))[1] == body

        with_session(use)


@pytest.mark.parametrize(
    ("reference", "kind"),
    [("4101", "no_preview"), ("4102", "no_preview"), ("isrc:GBXXX0000001", "no_match"), ("999999", "no_data"),
     (f"isrc:{isrc(4101)}", "no_preview"), ("../artist/1", "no_data")],
)  # fmt: skip
def test_a_missing_preview_is_an_error_of_a_kind(reference: str, kind: str) -> None:
    with deezer() as (fake, api):
        fake.without_preview.add(4101)
        fake.unreadable.add(4102)
        with pytest.raises(FetchError) as error:
            with_session(lambda session: api.locate(session, reference))
    assert (error.value.kind, error.value.retryable) == (kind, False)


def test_locating_a_preview_is_retried_within_the_deadlines() -> None:
    with deezer() as (fake, api):
        fake.faults.queues["/track/4101"] = ["slow", "quota"]
        located: AudioLocation = with_session(lambda session: api.locate(session, "4101"), total_seconds=0.5)
        assert located.audio_id == "deezer:4101"
        assert fake.faults.paths == ["/track/4101"] * 3


@pytest.mark.slow
def test_a_crawl_fills_the_tables_and_the_next_one_requests_only_what_may_have_changed(
    library: Library,
) -> None:
    with deezer() as (fake, api):
        fake.faults.queues["/album/41"] = ["quota"]
        source = DeezerSource(playlists=(30,), albums=(41,), api=api)
        first = crawl(library, source, CrawlConfig())
        assert (first.counts["read"], len(fake.faults.paths)) == (4, 5)
        second = crawl(library, source, CrawlConfig())
        assert fake.faults.paths[5:] == ["/playlist/30?limit=100"]
    assert not first.problems
    assert (second.counts["new"], second.counts["read"]) == (0, 1)
    entries = library.table("playlists").read(["position", "track_id"]).sort_by("position").to_pylist()
    assert [entry["track_id"] for entry in entries] == [f"deezer:{n}" for n in fake.playlist_songs(30)]
    locations = library.table("tracks").newest(["track_id", "location"]).rows.to_pylist()
    assert {row["location"] for row in locations} == {row["track_id"] for row in locations}


def test_a_source_without_a_start_is_refused() -> None:
    with pytest.raises(ValueError, match="--artists"):
        list(DeezerSource().pages())


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="--deezer-requests-per-second"):
        DeezerApi(deezer_requests_per_second=rate)


@given(st.floats(0.01, 1000))
def test_the_limit_is_the_stated_rate(rate: float) -> None:
    limit = DeezerApi(deezer_requests_per_second=rate).limit
    assert limit.requests / limit.seconds == pytest.approx(rate)


TRACK = {
    "type": "track", "id": 1, "title": "Song", "artist": {"id": 7, "name": "Artist"}, "duration": 180,
    "album": {"id": 71, "title": "Album", "release_date": "1987-03-01"}, "preview": "http://x.test/1.mp3",
    "isrc": "GBDUW0000059", "explicit_lyrics": False, "readable": True,
}  # fmt: skip
NAMED = {"id": 7, "name": "Artist", "title": "Title"}
ODD_VALUES = ["\ud83d", {"a": "b"}, [[]], -1, 1e400, "", None]


def read_body(body: str, **options: Any) -> tuple[Contents, list[bool]]:
    """What is read of pages whose responses have this body, all of which tables can hold; and whether each
    page is finished."""

    async def respond(request: Request) -> Response:
        return Response(text=body, content_type="application/json")

    application = web_application(respond)
    with served(application) as url:
        api = DeezerApi(url, deezer_requests_per_second=10_000, deezer_pause_seconds=0.1)
        source = DeezerSource(api=api, **options)
        pieces = list(source.read(list(source.pages())))
    for _, piece in pieces:
        pa.Table.from_pylist([asdict(piece) | {"problems": []}], PIECES)
    everything = Contents()
    for name in ("tracks", "artists", "pages", "problems"):
        for _, piece in pieces:
            getattr(everything, name).extend(getattr(piece, name))
    return everything, [piece.finished for _, piece in pieces]


def web_application(respond: Callable[[Request], Coroutine[Any, Any, Response]]) -> Application:
    application = Application()
    application.router.add_get("/{path:.*}", respond)
    return application


@pytest.mark.parametrize("name", sorted(TRACK))
def test_an_odd_item_is_at_most_one_problem_and_the_rest_is_read(name: str) -> None:
    items = [TRACK, *(TRACK | {"id": 9, name: value} for value in ODD_VALUES), TRACK | {"id": 2}]
    contents, finished = read_body(json.dumps({"data": items}), search=("x",))
    assert {"deezer:1", "deezer:2"} <= set(track_ids(contents))
    assert len(contents.tracks) + len(contents.problems) >= len(items)
    assert {problem.kind for problem in contents.problems} <= {"bad_item"}
    assert all(finished)


@pytest.mark.parametrize("options", [{"genres": (1,)}, {"charts": (0,)}])
def test_an_odd_artist_album_or_playlist_of_a_list_is_one_problem(options: dict[str, Any]) -> None:
    items = [NAMED, 5, NAMED | {"name": "\ud83d", "id": 8}, {"id": 6}, NAMED | {"id": 9}]
    lists = {name: {"data": items} for name in ("artists", "albums", "playlists")}
    body = {"data": items, "tracks": {"data": [TRACK]}} | lists
    contents, finished = read_body(json.dumps(body), **options)
    assert {artist.artist_id for artist in contents.artists} == {"deezer:artist:7", "deezer:artist:9"}
    assert {"artist/7/top", "artist/9/top"} <= {page.name for page in contents.pages}
    assert {problem.kind for problem in contents.problems} == {"bad_item"} and all(finished)


@pytest.mark.parametrize("body", [
    "[" * 100_000 + "]" * 100_000,
    json.dumps({"title": "\ud83d"}),  # of an album, whose tracks' page would have it in its name
])  # fmt: skip
def test_an_answer_that_cannot_be_used_is_a_problem_of_its_page(body: str) -> None:
    contents, finished = read_body(body, albums=(1, 2))
    assert [problem.kind for problem in contents.problems] == ["malformed"] * 2
    assert finished == [True, True]


@pytest.mark.parametrize("body", [
    {"error": {"code": [1], "message": "\ud83d"}}, {"error": "\ud83d"}, {"error": {"code": "\ud83d"}},
])  # fmt: skip
def test_an_odd_error_is_a_problem(body: dict[str, Any]) -> None:
    contents, _ = read_body(json.dumps(body), albums=(1,))
    assert len(contents.problems) == 1


def test_a_list_that_announces_more_than_any_has_is_bounded() -> None:
    body = {"data": [TRACK], "total": 10**12, "next": "http://x.test/?index=100"}
    contents, _ = read_body(json.dumps(body), search=("x",))
    assert len(contents.pages) == MAX_TOTAL // 100 - 1
