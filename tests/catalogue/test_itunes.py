from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web
from fakes import served
from fakes.itunes import FakeItunes

from songray.catalogue.sources.base import Contents
from songray.catalogue.sources.itunes import ItunesApi, ItunesSource
from songray.catalogue.sources.reading import PIECES
from songray.errors import InvalidOption

pytestmark = pytest.mark.usefixtures("cluster")


@contextmanager
def itunes(**options: Any) -> Iterator[tuple[FakeItunes, ItunesApi]]:
    fake = FakeItunes(**options)
    with served(fake.application()) as url:
        yield fake, ItunesApi(url, itunes_requests_per_minute=100_000, itunes_pause_seconds=0.2)


def read(source: ItunesSource) -> Contents:
    everything = Contents(finished=True)
    for _, contents in source.read(list(source.pages())):
        for name in ("tracks", "artists", "problems"):
            getattr(everything, name).extend(getattr(contents, name))
        assert not contents.pages
        everything = Contents(**vars(everything) | {"finished": everything.finished and contents.finished})
    return everything


def test_a_search_returns_songs_and_counts_other_results() -> None:
    with itunes(others=("music-video", "podcast")) as (fake, api):
        fake.without_preview.add(701002)
        contents = read(ItunesSource(search=("artist 7", "artist 7"), country="DE", api=api))
        assert len(fake.faults.paths) == 1
        assert "country=DE" in fake.faults.paths[0]
    assert len(contents.tracks) == 15
    first, second = contents.tracks[:2]
    assert (first.track_id, first.title, first.album, first.album_id) == (
        "itunes:701001", "Song 701001", "Album 701", "itunes:album:701")  # fmt: skip
    assert (first.artist_ids, first.artist_names) == (["itunes:artist:7"], ["Artist 7"])
    assert (first.release_date, first.release_date_precision) == ("2001-03-01", "day")
    assert (first.duration_seconds, first.genres, first.explicit) == (180.501, ["Jazz"], True)
    assert first.location == f"{api.itunes_url}/previews/mzaf_701001.plus.aac.p.m4a"
    assert (second.location, second.explicit) == (None, False)
    assert [problem.kind for problem in contents.problems] == ["not_a_song"] * 2


@pytest.mark.parametrize(("number", "songs"), [(7, 15), (701, 5), (701001, 1)])
def test_a_lookup_takes_artists_albums_and_songs(number: int, songs: int) -> None:
    with itunes() as (_, api):
        contents = read(ItunesSource(ids=(number,), api=api))
    assert len(contents.tracks) == songs
    assert not contents.problems
    assert {artist.artist_id for artist in contents.artists} == {"itunes:artist:7"}


def test_missing_and_cut_off_results_are_problems() -> None:
    with itunes(songs=70) as (fake, api):
        fake.faults.queues["/search"] = ["404"]
        contents = read(ItunesSource(search=("artist 1",), ids=(2, 999), api=api))
    kinds = Counter(problem.kind for problem in contents.problems)
    assert kinds == {"http_404": 1, "no_data": 1, "cut_off": 1}
    assert len(contents.tracks) == 199  # 200 results, of which the first is the artist
    assert contents.finished


def test_a_refusal_pauses_all_requests_and_then_everything_is_read() -> None:
    with itunes() as (fake, api):
        fake.faults.queues |= {"/search": ["403", "429, a moment"], "/lookup": ["429", "500"]}
        contents = read(ItunesSource(search=("artist 1",), ids=(2,), api=api))
        times = [at for at, path in fake.faults.requests if path.startswith("/search")]
    assert len(contents.tracks) == 30
    assert not contents.problems
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times))


def test_a_repeated_refusal_leaves_the_page_for_the_next_crawl() -> None:
    with itunes() as (fake, api):
        fake.faults.queues["/search"] = ["403"] * 3
        source = ItunesSource(search=("artist 1",), api=api)
        contents = read(source)
        assert not contents.finished
        (problem,) = contents.problems
        assert (problem.kind, problem.detail[:7]) == ("throttled", "search?")
        assert len(fake.faults.paths) == 3
        assert len(read(source).tracks) == 15


def test_impossible_options_are_refused() -> None:
    with pytest.raises(InvalidOption, match="--ids"):
        list(ItunesSource().pages())
    with pytest.raises(InvalidOption, match="--itunes-requests-per-minute 0"):
        ItunesApi(itunes_requests_per_minute=0)


SONG = {
    "wrapperType": "track", "kind": "song", "artistId": 7, "collectionId": 701, "trackId": 701001,
    "artistName": "Artist", "collectionName": "Album", "trackName": "Song", "previewUrl": "http://x.test/1.m4a",
    "releaseDate": "1987-03-01T08:00:00Z", "trackExplicitness": "explicit", "trackTimeMillis": 180_500,
    "primaryGenreName": "Jazz",
}  # fmt: skip
ODD_VALUES = ["\ud83d", {"a": "b"}, [[]], -1, 1e400, True, "", None, "x" * 100_000]


def read_body(body: str) -> Contents:
    """What is read of a response with this body, all of which tables can hold."""

    async def respond(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/javascript")

    application = web.Application()
    application.router.add_get("/search", respond)
    with served(application) as url:
        api = ItunesApi(url, itunes_requests_per_minute=100_000, itunes_pause_seconds=0.2)
        contents = read(ItunesSource(search=("x",), api=api))
    pa.Table.from_pylist([asdict(contents) | {"problems": []}], PIECES)
    return contents


@pytest.mark.parametrize("name", sorted(SONG))
def test_an_odd_item_is_at_most_one_problem_and_the_rest_is_read(name: str) -> None:
    items = [SONG, *(SONG | {"trackId": 9, name: value} for value in ODD_VALUES), SONG | {"trackId": 701002}]
    contents = read_body(json.dumps({"results": items}))
    assert {"itunes:701001", "itunes:701002"} <= {track.track_id for track in contents.tracks}
    assert contents.finished
    kinds = Counter(problem.kind for problem in contents.problems)
    assert set(kinds) <= {"bad_item", "not_a_song"}
    assert len(contents.tracks) + kinds["bad_item"] >= len(items) - kinds["not_a_song"]


def test_an_answer_that_is_nested_too_deeply_is_a_problem_of_its_page() -> None:
    contents = read_body('{"results": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert ([problem.kind for problem in contents.problems], contents.tracks) == (["malformed"], [])
    assert contents.finished
