"""Tags of the sound: how they are stored, in indexes, filters, answers and questions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import free_port
from constructed import RUN, add_run, add_tracks, units
from hypothesis import given
from hypothesis import strategies as st
from serving import local_service, problem

from songray.keys import REVISION_BITS, KeySet, track_key
from songray.learning.models.labels import MSD
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.search.erase import erase
from songray.search.filters import Facets, Filters
from songray.search.index import Index
from songray.search.ranking import places
from songray.search.tags import Tags, probabilities, statistics, to_levels
from songray.search.version import newest_version
from songray.service.app import served
from songray.service.options import IngressConfig, ServeConfig

TRACKS = 60


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_stored_probabilities_are_near_and_in_order(values: list[float]) -> None:
    values = sorted(values)
    levels = to_levels(np.array([values], np.float32))
    assert (levels > 0).all() and (np.diff(levels[0].astype(int)) >= 0).all()
    assert np.abs(probabilities(levels)[0] - values).max() < 0.009


def test_unknown_tags_have_no_score_and_are_no_tags() -> None:
    levels = to_levels(np.array([[0.9, 0.1], [np.nan, np.nan]], np.float32))
    tags = Tags(statistics(["rock", "piano"], levels))
    assert np.isnan(tags.score(levels, {"rock": 1})).tolist() == [False, True]
    assert tags.has(levels, ["rock", "piano"]).tolist() == [[True, False], [False, False]]
    assert tags.shown(levels)[1] == []
    assert statistics(["rock", "piano"], levels[1:]) == {}


def test_a_tag_stands_out_of_its_catalogue_or_is_likely() -> None:
    """A rare tag has low probabilities everywhere, and where all tracks have a tag none stands out."""
    rare = [0.01] * 18 + [0.2, 0.3]
    common = [0.9] * 20
    impossible = [0.001] * 18 + [0.004, 0.004]
    levels = to_levels(np.array([rare, common, impossible], np.float32).T)
    tags = Tags(statistics(["rare", "common", "impossible"], levels))
    has = tags.has(levels, ["impossible", "common", "rare"])
    assert np.flatnonzero(has[:, 2]).tolist() == [18, 19]
    assert has[:, 1].all() and not has[:, 0].any()
    shown = [item["tag"] for item in tags.shown(levels[[19]])[0]]
    assert shown == ["rare", "common"]  # what stands out comes first


@given(st.integers(0, 100))
def test_scores_rise_with_what_is_wanted_and_fall_with_what_is_not(seed: int) -> None:
    levels = np.random.default_rng(seed).integers(1, 256, (40, 3)).astype(np.uint8)
    tags = Tags(statistics(["a", "b", "c"], levels))
    scores = tags.score(levels, {"a": 1, "b": -0.5})
    assert (np.abs(scores) < 1).all()
    better = levels.copy()
    better[:, 0], better[:, 1] = np.maximum(better[:, 0], 200), np.minimum(better[:, 1], 50)
    assert (tags.score(better, {"a": 1, "b": -0.5}) >= scores).all()
    changed = levels.copy()
    changed[:, 2] = 9
    assert np.array_equal(tags.score(changed, {"a": 1, "b": -0.5}), scores)  # no question about it


def probability_rows(count: int, first: int = 0) -> list[list[float] | None]:
    """Every third track is rock, every fourth jazz, and the tags of every tenth are unknown."""
    rows: list[list[float] | None] = []
    for number in range(first, first + count):
        row = [0.02] * len(MSD)
        row[MSD.index("rock")] = 0.5 + number / 1000 if number % 3 == 0 else 0.03
        row[MSD.index("jazz")] = 0.3 if number % 4 == 0 else 0.01
        rows.append(None if number % 10 == 9 else row)
    return rows


@pytest.fixture(scope="module")
def tagged(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """An index of three shards, to whose last one tracks were appended."""
    library = add_run(Library.open(str(tmp_path_factory.mktemp("tagged") / "library")), "musicnn-msd")
    add_tracks(library, units(TRACKS), tags=probability_rows(TRACKS))
    index(library, IndexConfig(shard_tracks=35))
    add_tracks(library, units(20, seed=1), first=TRACKS, tags=probability_rows(20, TRACKS))
    assert index(library, IndexConfig(shard_tracks=35)).version.version == "000002"
    return library


@pytest.fixture(scope="module")
def client(tagged: Library) -> Any:
    with local_service(tagged, IngressConfig(), RUN) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def numbers(response: httpx.Response) -> list[int]:
    return [int(match["track"]["track_id"].removeprefix("a:")) for match in response.json()["similar"]]


MANY = {"k": 100, "per_artist": 0, "per_album": 0}


def test_a_question_in_words_is_answered_by_the_tags(client: httpx.Client) -> None:
    response = client.get("/v1/similar", params={"text": "rock, but no jazz", **MANY})
    known = [number for number in range(TRACKS + 20) if number % 10 != 9]
    assert sorted(numbers(response)) == known
    best = [number for number in known if number % 3 == 0 and number % 4]
    assert set(numbers(response)[: len(best)]) == set(best)
    similarities = [match["similarity"] for match in response.json()["similar"]]
    assert (
        similarities == sorted(similarities, reverse=True)
        and 0 < similarities[-1] < 0.5 < similarities[0] < 1
    )
    assert all(
        match["cosine"] is None and match["nearest_seed"] is None for match in response.json()["similar"]
    )
    weights = response.json()["weights"]
    assert weights["rock"] > 0 and weights["jazz"] == -1
    unknown = problem(client.get("/v1/similar", params={"text": "xyzzy"}))
    assert unknown[0] == 422 and "no word of 'xyzzy' is known: use 00s, 60s" in unknown[1]


def test_the_best_described_tracks_are_the_first_of_all(tagged: Library) -> None:
    """Many tracks fit equally well: they are sorted by their place, however many are requested."""
    opened = Index.open(tagged, newest_version(tagged, RUN))
    every = asyncio.run(opened.described({"jazz": 1.0}, 100))
    assert len(every) == (TRACKS + 20) * 9 // 10 and len(np.unique(every["cosine"])) == 2
    for k in (1, 7, 30):
        assert places(asyncio.run(opened.described({"jazz": 1.0}, k))) == places(every[:k])


def test_filters_on_tags_hold_in_every_question(client: httpx.Client) -> None:
    rock = {number for number in range(TRACKS + 20) if number % 3 == 0 and number % 10 != 9}
    jazz = {number for number in range(TRACKS + 20) if number % 4 == 0 and number % 10 != 9}
    both, without = {"tags": "rock, jazz"}, {"tags": "Rock", "not_tags": "jazz"}
    for path in ("/v1/tracks/a:1/similar", "/v1/similar"):
        more = MANY if "tracks" in path else {**MANY, "text": "mellow"}
        assert set(numbers(client.get(path, params={**both, **more}))) == rock & jazz
        assert set(numbers(client.get(path, params={**without, **more}))) == rock - jazz
    body = {"like": [{"id": "a:1"}], "filters": {"not_tags": ["rock", "jazz"]}, **MANY}
    assert not set(numbers(client.post("/v1/recommend", json=body))) & (rock | jazz)
    path = client.get("/v1/path", params={"from": "a:0", "to": "a:12", "steps": 5, **both}).json()["tracks"]
    assert {int(track["track_id"][2:]) for track in path} <= rock & jazz
    status, detail = problem(client.get("/v1/tracks/a:1/similar", params={"tags": "organ"}))
    assert status == 422 and "'organ' is no tag of this index: it has 00s, 60s" in detail


def test_a_search_tells_whether_its_words_describe_a_sound(client: httpx.Client) -> None:
    weights = client.get("/v1/tracks?q=rock without jazz").json()["weights"]
    assert weights["jazz"] == -1 and weights["rock"] > 0
    assert client.get("/v1/tracks?q=xyzzy").json()["weights"] == {}


def test_points_are_colored_by_tags(client: httpx.Client) -> None:
    assert {"rock", "jazz"} <= {*client.get("/v1/stats").json()["tags"]}
    content = client.get("/v1/points?color=tag").content
    head = json.loads(content[4 : 4 + int.from_bytes(content[:4], "little")])
    assert {"rock", "jazz"} <= {*head["color"]["values"]}
    content = client.get("/v1/points?tag=rock").content
    head = json.loads(content[4 : 4 + int.from_bytes(content[:4], "little")])
    assert head["color"]["kind"] == "number" and 0 < head["color"]["least"] < head["color"]["largest"] < 1


@pytest.mark.slow
def test_slots_answer_a_description_as_one_index(tagged: Library, client: httpx.Client) -> None:
    config = ServeConfig(port=free_port(), ingress=IngressConfig(run=RUN, slots=2, encoders=0))
    paths = (
        "/v1/similar?text=jazz&k=30&per_artist=0",
        "/v1/similar?text=mellow&not_tags=jazz",
        "/v1/tracks/a:0",
    )
    with served(tagged, config) as url:
        for path in paths:
            assert httpx.get(f"{url}{path}", timeout=30).json() == client.get(path).json()


def test_answers_show_the_tags_of_a_track(client: httpx.Client) -> None:
    assert client.get("/v1/tracks/a:12").json()["tags"][0]["tag"] in ("rock", "jazz")
    shown = {item["tag"]: item["probability"] for item in client.get("/v1/tracks/a:0").json()["tags"]}
    assert shown == {"rock": pytest.approx(0.5, abs=0.01), "jazz": pytest.approx(0.3, abs=0.01)}
    assert client.get("/v1/tracks/a:9").json()["tags"] == []


def test_an_index_from_before_its_tags_grows_without_and_gets_them_when_it_is_compacted(
    cluster: None, library: Library
) -> None:
    add_tracks(add_run(library, "musicnn-msd"), units(30))
    index(library, IndexConfig())
    add_tracks(library, units(30, seed=1), first=30, tags=probability_rows(30, 30))
    grown = index(library, IndexConfig()).version
    assert (grown.tracks, grown.tags) == (60, {})
    compacted = index(library, IndexConfig(compact=True)).version
    assert list(compacted.tags) == list(MSD)
    expected = {f"a:{number}" for number in range(30, 60) if number % 3 == 0 and number % 10 != 9}
    assert rock_tracks(library) == expected
    with library.lease(f"indexes/{RUN}") as lease:
        erase(library, RUN, KeySet(np.array([track_key("a:33", 0) >> REVISION_BITS], np.int64)), lease)
    assert rock_tracks(library) == expected - {"a:33"}  # a rebuilt shard keeps the tags of the others


def rock_tracks(library: Library) -> set[str]:
    opened = Index.open(library, newest_version(library, RUN))
    rock = asyncio.run(opened.described({"rock": 1.0}, 100, Filters(include=Facets(tags=("rock",)))))
    return {row["track_id"] for row in asyncio.run(opened.rows(places(rock)))}
