"""The routes of /v1 over HTTP, on uvicorn in this process."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from serving import (
    CLIPS,
    RUN,
    LocalService,
    clip,
    embed_clips,
    local_service,
    problem,
    shared_library,
)

from songray.learning import runs
from songray.library import Library, Vectors
from songray.search.filters import EVERYTHING
from songray.search.index import Index
from songray.service.options import IngressConfig
from songray.service.slots import SlottedIndex


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def client(indexed: Library) -> Iterator[httpx.Client]:
    with local_service(indexed, IngressConfig()) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def vectors(indexed: Library, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    folder = shared_library(tmp_path_factory)[1]
    return embed_clips([clip(folder, number) for number in range(CLIPS)], indexed)


def number(match: dict[str, dict[str, str]]) -> int:
    return int(match["track"]["track_id"].removeprefix("t:"))


def test_search_returns_tracks_without_private_paths(client: httpx.Client) -> None:
    tracks = client.get("/v1/tracks", params={"q": "bjork 12", "limit": 5}).json()["tracks"]
    assert tracks[0]["track_id"] == "t:12"
    assert tracks[0] == client.get("/v1/tracks/t:12").json()
    assert (tracks[0]["preview"], ".flac" in str(tracks)) == (None, False)
    assert client.get("/v1/tracks/t:13").json()["preview"] == "https://x.test/13.mp3"
    assert problem(client.get("/v1/tracks/t:999")) == (404, "not in the index: t:999")


def test_similar_tracks_have_similarity_cosine_and_seed(client: httpx.Client, vectors: Vectors) -> None:
    response = client.get("/v1/tracks/t:12/similar", params={"k": 50, "per_artist": 0}).json()
    assert (response["version"], response["partial"]) == ("000001", False)
    assert response["track"] == client.get("/v1/tracks/t:12").json()
    assert len(response["similar"]) == CLIPS - 1
    for match in response["similar"]:
        assert match["cosine"] == pytest.approx(float(vectors[12] @ vectors[number(match)]), abs=1e-3)
        assert (match["nearest_seed"], match["nearest_seed_similarity"]) == ("t:12", match["similarity"])
    assert problem(client.get("/v1/tracks/t:999/similar")) == (404, "not in the index: t:999")


def test_similarity_follows_the_documented_formula_and_order(client: httpx.Client) -> None:
    """(cosine + 1)/2, descending without diversity."""
    for seed in ("t:3", "t:12"):
        matches = client.get(f"/v1/tracks/{seed}/similar", params={"k": 50, "per_artist": 0}).json()[
            "similar"
        ]
        similarities = [match["similarity"] for match in matches]
        assert similarities == sorted(similarities, reverse=True)
        for match in matches:
            assert match["similarity"] == pytest.approx((match["cosine"] + 1) / 2, abs=1e-6)
    description = client.get("/openapi.json").json()["components"]["schemas"]["Match"]["properties"]
    assert "(cosine + 1)/2" in description["similarity"]["description"]
    assert "With diversity above 0 the list is not sorted" in description["similarity"]["description"]


def test_similar_tracks_keep_to_limits_and_filters(client: httpx.Client) -> None:
    one_per_artist = {"k": 50, "per_artist": 1}
    matches = client.get("/v1/tracks/t:12/similar", params=one_per_artist).json()["similar"]
    assert len({match["track"]["artist_ids"][0] for match in matches}) == len(matches) == CLIPS // 4
    folk = {"k": 50, "per_artist": 0, "genres": "folk", "not_tracks": ["t:0", "t:2"], "year_to": 1990}
    matches = client.get("/v1/tracks/t:12/similar", params=folk).json()["similar"]
    assert {match["track"]["track_id"] for match in matches} == {"t:4", "t:6", "t:8", "t:10"}
    assert problem(client.get("/v1/tracks/t:12/similar", params={"k": 0}))[0] == 422
    assert problem(client.get("/v1/tracks/t:12/similar", params={"genre": "Folk"}))[0] == 422


def test_recommendations_for_liked_and_disliked_tracks(client: httpx.Client) -> None:
    body = {"like": [{"id": "t:3"}, {"id": "t:5", "weight": 2}], "unlike": [{"id": "t:20"}], "k": 6}
    filters = {"filters": {"genres": ["Electro"], "explicit": False}, "diversity": 0.2}
    matches = client.post("/v1/recommend", json=body | filters).json()["similar"]
    assert len(matches) == 6
    assert not {match["track"]["track_id"] for match in matches} & {"t:3", "t:5", "t:20"}
    assert {match["nearest_seed"] for match in matches} <= {"t:3", "t:5"}
    unknown = client.post("/v1/recommend", json=body | {"unlike": [{"id": "x"}, {"id": "y"}]})
    assert problem(unknown) == (404, "not in the index: x, y")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"like": []}, "body.like"),
        ({"like": [{"id": "t:1"}], "k": 0}, "body.k"),
        ({"like": [{"id": "t:1", "weight": 0}]}, "body.like.0.weight"),
        ({"like": [{"id": "t:1"}], "diversity": 1.1}, "body.diversity"),
        (
            {"like": [{"id": "t:1"}], "filters": {"year_from": 2000, "year_to": 1999}},
            "year_from 2000 is above",
        ),
        ({"like": [{"id": "t:1"}], "filters": {"genre": ["Folk"]}}, "body.filters.genre"),
    ],
)
def test_invalid_values_are_named(client: httpx.Client, body: dict[str, object], detail: str) -> None:
    status, actual = problem(client.post("/v1/recommend", json=body))
    assert status == 422 and detail in actual


def test_a_path_has_its_length_and_its_ends(client: httpx.Client) -> None:
    tracks = client.get("/v1/path", params={"from": "t:0", "to": "t:23", "steps": 6}).json()["tracks"]
    ids = [track["track_id"] for track in tracks]
    assert (len(set(ids)), ids[0], ids[-1]) == (6, "t:0", "t:23")
    assert problem(client.get("/v1/path", params={"from": "t:0", "to": "t:0"}))[0] == 422
    assert problem(client.get("/v1/path", params={"from": "t:0", "to": "t:1", "steps": 90}))[0] == 422


def test_a_playlist_is_continued_in_each_format(client: httpx.Client) -> None:
    body = {"seeds": [{"id": "t:3"}, {"id": "t:4"}], "k": 5}
    tracks = client.post("/v1/playlist", json=body).json()["tracks"]
    ids = [track["track_id"] for track in tracks]
    assert len(set(ids)) == 5 and not set(ids) & {"t:3", "t:4"}
    locations = [track["preview"] or track["track_id"] for track in tracks]
    lines = client.post("/v1/playlist?format=m3u8", json=body).text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert lines[2::2] == locations
    first = tracks[0]
    name = f"{first['artist_names'][0]} - {first['title']}"
    assert lines[1] == f"#EXTINF:{first['duration_seconds']:.0f},{name}"
    accepted = client.post("/v1/playlist", json=body, headers={"Accept": "text/html, text/csv;q=0.9"})
    assert accepted.headers["content-type"].startswith("text/csv")
    assert [row["track_id"] for row in csv.DictReader(io.StringIO(accepted.text))] == ids
    space = {"x": "http://xspf.org/ns/0/"}
    xspf = ElementTree.fromstring(client.post("/v1/playlist?format=xspf", json=body).text)
    assert [element.text for element in xspf.findall("x:trackList/x:track/x:location", space)] == locations


def test_the_map_of_a_box_refines_the_whole_map(client: httpx.Client) -> None:
    points = client.get("/v1/map").json()["points"]
    assert {point["track_id"] for point in points} == {f"t:{number}" for number in range(CLIPS)}
    left, right = sorted(point["x"] for point in points)[2], max(point["x"] for point in points)
    part = client.get("/v1/map", params={"bbox": f"{left},-9,{right},9", "limit": 5}).json()["points"]
    assert len(part) == 5 and all(left <= point["x"] <= right for point in part)
    first = [point["track_id"] for point in client.get("/v1/map", params={"limit": 3}).json()["points"]]
    inside = [p["track_id"] for p in points if left <= p["x"] <= right and p["track_id"] in first]
    assert set(inside) <= {point["track_id"] for point in part}
    assert problem(client.get("/v1/map", params={"bbox": "1,2,3"}))[0] == 422


def decoded(content: bytes) -> dict[str, Any]:
    """The columns of /v1/points by name, and its header, as the document says that they are encoded."""
    length = int.from_bytes(content[:4], "little")
    head, offset = json.loads(content[4 : 4 + length]), 4 + length
    for column in head["columns"]:
        kind = np.dtype(column["type"])
        head[column["name"] + "s"] = np.frombuffer(content, kind, head["count"], offset)
        offset += kind.itemsize * head["count"]
    assert offset == len(content)
    return head


def test_points_are_those_of_the_map_with_a_color(client: httpx.Client) -> None:
    points = {point["track_id"]: point for point in client.get("/v1/map").json()["points"]}
    head = decoded(client.get("/v1/points").content)
    assert (head["count"], head["tracks"], head["color"]["values"]) == (CLIPS, CLIPS, ["Electro", "Folk"])
    names = [f"{shard}.{label}" for shard, label in zip(head["shards"], head["labels"], strict=True)]
    tracks = client.get("/v1/points/tracks", params={"version": head["version"], "point": names}).json()[
        "tracks"
    ]
    left, bottom, right, top = head["extent"]
    for number, track in enumerate(tracks):
        point = points[track["track_id"]]
        assert left + head["xs"][number] / 65535 * (right - left) == pytest.approx(point["x"], abs=1e-4)
        assert bottom + head["ys"][number] / 65535 * (top - bottom) == pytest.approx(point["y"], abs=1e-4)
        assert head["color"]["values"][head["colors"][number]] == track["genres"][0]
    years = decoded(client.get("/v1/points?color=year").content)
    assert years["colors"].tolist() == [int(track["release_date"]) for track in tracks]
    similar = decoded(client.get("/v1/points?similar_to=t:12").content)
    assert tracks[similar["colors"].argmax()]["track_id"] == "t:12" and similar["color"][
        "largest"
    ] == pytest.approx(1)
    box = {"bbox": f"{left},{bottom},{(left + right) / 2},{top}", "limit": 3}
    assert decoded(client.get("/v1/points", params=box).content)["count"] == 3
    places = client.get("/v1/points/positions?track=t:3&track=t:999").json()["positions"]
    assert places == {"t:3": [pytest.approx(points["t:3"][axis]) for axis in "xy"]}


def test_points_of_another_version_are_refused(client: httpx.Client) -> None:
    for parameters in ({"version": "000099", "point": "0.1"}, {"version": "000001", "point": "0.999"}):
        status, detail = problem(client.get("/v1/points/tracks", params=parameters))
        assert status == 404 and "load the map anew" in detail
    assert problem(client.get("/v1/points/tracks?version=1&point=x"))[0] == 422
    assert problem(client.get("/v1/points?similar_to=t:999"))[0] == 404
    assert problem(client.get("/v1/points?tag=piano"))[0] == 422  # this run gives no tags


def test_files_are_streamed_by_ranges_and_urls_are_redirected_to(client: httpx.Client) -> None:
    link = client.get("/v1/tracks/t:3/audio").json()["url"]
    whole = client.get(link)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "audio/flac")
    part = client.get(link, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert client.get(link, headers={"Range": "bytes=99999999-"}).status_code == 416
    elsewhere = client.get(client.get("/v1/tracks/t:4/audio").json()["url"])
    assert (elsewhere.status_code, elsewhere.headers["location"]) == (307, "https://x.test/4.mp3")
    assert problem(client.get("/v1/tracks/t:999/audio"))[0] == 404
    assert problem(client.get("/audio/t%3A999"))[0] == 404


def test_a_playlist_names_files_by_their_paths_where_the_service_is_for_one_person(
    indexed: Library, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = shared_library(tmp_path_factory)[1]
    with local_service(indexed, IngressConfig(export_paths=True)) as url:
        lines, xspf = (
            httpx.post(f"{url}/v1/export?format={name}", json={"tracks": ["t:4", "t:3"]}).text
            for name in ("m3u8", "xspf")
        )
    assert lines.splitlines()[2::2] == ["https://x.test/4.mp3", str(folder / "3.flac")]
    assert f"<location>{(folder / '3.flac').as_uri()}</location>" in xspf


def test_the_page_may_load_audio_from_the_hosts_of_the_index_alone(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"].split("; ")
    assert (
        "media-src 'self' https://*.dzcdn.net https://*.itunes.apple.com https://*.mzstatic.com https://x.test"
        in policy
    )


def test_a_playlist_is_exported(client: httpx.Client) -> None:
    lines = client.post("/v1/export", json={"tracks": ["t:4", "t:3"]}).text.splitlines()
    assert lines[2] == "https://x.test/4.mp3" and client.get(lines[4]).headers["content-type"] == "audio/flac"
    table = client.post("/v1/export?format=csv", json={"tracks": ["t:4"]})
    assert table.headers["content-disposition"] == 'attachment; filename="songray.csv"'
    assert problem(client.post("/v1/export", json={"tracks": ["t:999"]}))[0] == 404
    assert problem(client.post("/v1/export", json={"tracks": []}))[0] == 422


def test_the_library_is_described(client: httpx.Client) -> None:
    content = client.get("/v1/runs").json()
    run = {"name": RUN, "model": "mfcc", "metrics": {"loss": 0.5}, "versions": ["000001"]}
    assert content == {"serving": RUN, "runs": [run]}
    stats = client.get("/v1/stats").json()
    assert (stats["tracks"], stats["dimension"], stats["shards"]) == (CLIPS, 8, 1)
    assert (stats["run"], stats["version"]) == (RUN, "000001")
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = {"status": "ready", "run": RUN, "version": "000001", "tracks": CLIPS}
    assert client.get("/readyz").json() == ready


def test_a_text_without_known_words_is_embedded_where_the_run_takes_texts(indexed: Library) -> None:
    service = LocalService(indexed)
    with (
        local_service(indexed, IngressConfig(), service=service) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        status, detail = problem(client.get("/v1/similar?text=rain on a tin roof"))
        assert status == 422 and "no word of 'rain on a tin roof' is known" in detail
        service.of_text = asyncio.run(service.index.vectors([(0, 2)]))[0]
        (itself,) = asyncio.run(service.index.rows([(0, 2)]))
        answer = client.get("/v1/similar?text=rain on a tin roof&k=1").json()
        assert answer["weights"] == {}
        assert answer["similar"][0]["track"]["track_id"] == itself["track_id"]
        assert answer["similar"][0]["cosine"] == pytest.approx(1, abs=1e-3)


def test_an_index_without_tracks_is_answered_from(indexed: Library) -> None:
    seeds, unknown = [{"id": "t:1"}], (404, "not in the index: t:1")
    service = LocalService(indexed, vector=np.ones(8, np.float32))
    service.index = Index(replace(service.index.version, shards=[], tracks=0), [])
    with (
        local_service(indexed, IngressConfig(), service=service) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert client.get("/readyz").json()["tracks"] == 0
        assert client.get("/v1/stats").json()["shards"] == 0
        assert client.get("/v1/tracks").json()["tracks"] == []
        assert client.get("/v1/tracks?q=bjork").json()["tracks"] == []
        assert client.get("/v1/map").json()["points"] == []
        assert client.get("/v1/map?bbox=-1,-1,1,1").json()["points"] == []
        assert client.post("/v1/similar", files={"audio": b"x"}).json()["similar"] == []
        for path in ("/v1/tracks/t:1", "/v1/tracks/t:1/similar"):
            assert problem(client.get(path)) == unknown
        assert problem(client.post("/v1/recommend", json={"like": seeds})) == unknown
        assert problem(client.post("/v1/playlist", json={"seeds": seeds})) == unknown
        assert problem(client.get("/v1/path?from=t:1&to=t:2")) == (404, "not in the index: t:1, t:2")
        for path in ("/", "/healthz", "/metrics", "/v1/runs"):
            assert client.get(path).status_code == 200
        failure = client.get("/rest/getSonicSimilarTracks?f=json&id=t:1").json()["subsonic-response"]
        assert failure["error"]["code"] == 70


def test_slots_of_an_index_without_tracks_are_complete(indexed: Library) -> None:
    async def answers(index: SlottedIndex) -> list[object]:
        nearest = await index.nearest(np.ones((2, 8), np.float32), 5, EVERYTHING)
        others = [await index.find(["t:1"]), await index.search("bjork", 5), await index.points(None, 5)]
        return [*map(len, nearest), *map(len, others), index.partial]

    version = replace(LocalService(indexed).index.version, shards=[], tracks=0)
    assert asyncio.run(answers(SlottedIndex(version, []))) == [0, 0, 0, 0, 0, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_audio_whose_vector_has_no_direction_is_refused(indexed: Library, value: float) -> None:
    service = LocalService(indexed, vector=np.full(8, value, np.float32))
    with local_service(indexed, IngressConfig(), service=service) as url:
        status, detail = problem(httpx.post(f"{url}/v1/similar", files={"audio": b"x"}))
    assert status == 422 and "cannot be compared with tracks" in detail


def test_seeds_that_cancel_out_are_refused(client: httpx.Client) -> None:
    body = {"like": [{"id": "t:1"}], "unlike": [{"id": "t:1"}]}
    status, detail = problem(client.post("/v1/recommend", json=body))
    assert status == 422 and "a track is both liked and disliked" in detail


def test_the_record_of_a_run_is_read_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []

    def counted(filesystem: object, path: str) -> object:
        paths.append(path)
        return read_json(filesystem, path)

    read_json = runs.read_json
    monkeypatch.setattr(runs, "read_json", counted)
    assert client.get("/v1/runs").status_code == 200
    assert len(paths) == len(set(paths)) == 1


def test_a_query_by_audio_needs_a_file_or_a_source(client: httpx.Client) -> None:
    assert problem(client.post("/v1/similar", content=b"{}"))[0] == 415
    assert problem(client.post("/v1/similar", files={"sound": b"x"}))[0] == 422
    assert problem(client.post("/v1/similar", params={"source": "deezer"}))[0] == 422
    assert problem(client.post("/v1/similar", params={"source": "folder", "q": "x"}))[0] == 422
    both = client.post("/v1/similar", params={"source": "deezer", "q": "x"}, files={"audio": b"x"})
    assert problem(both)[0] == 422
