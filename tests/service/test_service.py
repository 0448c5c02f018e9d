"""The service over real HTTP, on a library of short sounds."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import fakes
import httpx
import numpy as np
import pytest
import ray
import soundfile
import yaml
from aiohttp import web
from conftest import free_port
from fakes.deezer import FakeDeezer
from fakes.itunes import FakeItunes
from listening import RUN, SOUNDS, add, answering, heard, listening, sound
from ray import serve
from ray.serve.schema import ServeDeploySchema

from songray.catalogue.sources.deezer import DeezerApi
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.service import middleware as door
from songray.service.app import IngressConfig, ServeConfig, bound, build, deploy, served
from songray.service.external import ExternalSources
from songray.service.middleware import KEYS
from songray.service.problems import Refusal
from songray.service.uploads import Encoder, memory_limited


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("listening")


@pytest.fixture(scope="module")
def sounds(folder: Path) -> Library:
    return listening(folder)


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Iterator[ExternalSources]:
    """Sources whose every preview is the sound of t:5."""

    async def preview(request: web.Request) -> web.Response:
        return web.Response(body=sound(folder, 5))

    deezer, itunes = FakeDeezer(), FakeItunes()
    deezer._preview = itunes._preview = preview
    with fakes.served(deezer.application()) as of_deezer, fakes.served(itunes.application()) as of_itunes:
        yield ExternalSources(DeezerApi(of_deezer), of_itunes, ("127.0.0.1",))


@pytest.fixture(scope="module")
def config(folder: Path, elsewhere: ExternalSources) -> ServeConfig:
    ingress = IngressConfig(
        watch_seconds=0.3,
        max_ongoing=4,
        max_queued=8,
        access_log=str(folder / "requests.jsonl"),
        elsewhere=elsewhere,
    )
    return ServeConfig(port=free_port(), ingress=ingress)


@pytest.fixture(scope="module")
def client(sounds: Library, config: ServeConfig) -> Iterator[httpx.Client]:
    with served(sounds, config) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["detail"]


def test_tracks_are_found_and_shown(client: httpx.Client) -> None:
    found = client.get("/v1/tracks", params={"q": "bjork 12", "limit": 5}).json()["tracks"]
    assert found[0]["track_id"] == "t:12"
    assert found[0] == client.get("/v1/tracks/t:12").json()
    assert (found[0]["preview"], "/private" in str(found)) == (None, False)
    assert client.get("/v1/tracks/t:13").json()["preview"] == "https://x.test/13.mp3"
    assert problem(client.get("/v1/tracks/t:999")) == (404, "not in the index: t:999")


def test_similar_tracks_come_with_the_reason(client: httpx.Client, sounds: Library, folder: Path) -> None:
    vectors = heard([sound(folder, number) for number in range(SOUNDS)], sounds)
    answer = client.get("/v1/tracks/t:12/similar", params={"k": 50, "per_artist": 0}).json()
    assert (answer["version"], answer["partial"], answer["track"]["track_id"]) == ("000001", False, "t:12")
    assert len(answer["similar"]) == SOUNDS - 1
    for one in answer["similar"]:
        cosine = float(vectors[12] @ vectors[int(one["track"]["track_id"][2:])])
        assert one["similarity"] == pytest.approx((1 + cosine) / 2, abs=1e-5)
        assert (one["nearest_seed"], one["nearest_seed_similarity"]) == ("t:12", one["similarity"])
    few = client.get("/v1/tracks/t:12/similar", params={"k": 50, "per_artist": 1}).json()["similar"]
    assert len({one["track"]["artist_ids"][0] for one in few}) == len(few) == SOUNDS // 4
    folk = {"k": 50, "per_artist": 0, "genres": "folk", "not_tracks": ["t:0", "t:2"], "year_to": 1990}
    only = client.get("/v1/tracks/t:12/similar", params=folk).json()["similar"]
    assert {one["track"]["track_id"] for one in only} == {"t:4", "t:6", "t:8", "t:10"}


def test_likes_and_dislikes(client: httpx.Client) -> None:
    question = {"like": [{"id": "t:3"}, {"id": "t:5", "weight": 2}], "unlike": [{"id": "t:20"}], "k": 6}
    filters = {"filters": {"genres": ["Electro"], "explicit": False}, "diversity": 0.2}
    found = client.post("/v1/recommend", json=question | filters).json()["similar"]
    assert len(found) == 6
    assert not {one["track"]["track_id"] for one in found} & {"t:3", "t:5", "t:20"}
    assert {one["nearest_seed"] for one in found} <= {"t:3", "t:5"}
    unknown = client.post("/v1/recommend", json=question | {"unlike": [{"id": "x"}, {"id": "y"}]})
    assert problem(unknown) == (404, "not in the index: x, y")


@pytest.mark.parametrize(
    ("content", "where"),
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
def test_what_is_out_of_range_is_named(client: httpx.Client, content: dict[str, object], where: str) -> None:
    status, detail = problem(client.post("/v1/recommend", json=content))
    assert status == 422 and where in detail


def test_a_path_has_its_length_and_its_ends(client: httpx.Client) -> None:
    found = client.get("/v1/path", params={"from": "t:0", "to": "t:23", "steps": 6}).json()["tracks"]
    ids = [track["track_id"] for track in found]
    assert (len(set(ids)), ids[0], ids[-1]) == (6, "t:0", "t:23")
    assert problem(client.get("/v1/path", params={"from": "t:0", "to": "t:0"}))[0] == 422
    assert problem(client.get("/v1/path", params={"from": "t:0", "to": "t:1", "steps": 90}))[0] == 422


def test_a_playlist_goes_on_in_each_format(client: httpx.Client) -> None:
    question = {"seeds": [{"id": "t:3"}, {"id": "t:4"}], "k": 5}
    tracks = client.post("/v1/playlist", json=question).json()["tracks"]
    ids = [track["track_id"] for track in tracks]
    assert len(set(ids)) == 5 and not set(ids) & {"t:3", "t:4"}
    places = [track["preview"] or track["track_id"] for track in tracks]
    lines = client.post("/v1/playlist?format=m3u8", json=question).text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert lines[2::2] == places
    first = tracks[0]
    name = f"{first['artist_names'][0]} - {first['title']}"
    assert lines[1] == f"#EXTINF:{first['duration_seconds']:.0f},{name}"
    accepted = client.post("/v1/playlist", json=question, headers={"Accept": "text/html, text/csv;q=0.9"})
    assert accepted.headers["content-type"].startswith("text/csv")
    assert [row["track_id"] for row in csv.DictReader(io.StringIO(accepted.text))] == ids
    space = {"x": "http://xspf.org/ns/0/"}
    xspf = ElementTree.fromstring(client.post("/v1/playlist?format=xspf", json=question).text)
    assert [one.text for one in xspf.findall("x:trackList/x:track/x:location", space)] == places


def test_the_map_of_a_part_adds_to_the_whole(client: httpx.Client) -> None:
    points = client.get("/v1/map").json()["points"]
    assert {point["track_id"] for point in points} == {f"t:{number}" for number in range(SOUNDS)}
    left, right = sorted(point["x"] for point in points)[2], max(point["x"] for point in points)
    part = client.get("/v1/map", params={"bbox": f"{left},-9,{right},9", "limit": 5}).json()["points"]
    assert len(part) == 5 and all(left <= point["x"] <= right for point in part)
    first = [p["track_id"] for p in client.get("/v1/map", params={"limit": 3}).json()["points"]]
    inside = [p["track_id"] for p in points if left <= p["x"] <= right and p["track_id"] in first]
    assert set(inside) <= {point["track_id"] for point in part}
    assert problem(client.get("/v1/map", params={"bbox": "1,2,3"}))[0] == 422


def test_the_library_is_described(client: httpx.Client) -> None:
    (run,) = client.get("/v1/runs").json()["runs"]
    assert run == {"name": RUN, "model": "mfcc", "metrics": {"loss": 0.5}, "versions": ["000001"]}
    stats = client.get("/v1/stats").json()
    assert (stats["tracks"], stats["dimension"], stats["shards"], stats["version"]) == (
        SOUNDS,
        8,
        1,
        "000001",
    )
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["tracks"] == SOUNDS


def test_a_file_sounds_like_itself(client: httpx.Client, sounds: Library, folder: Path) -> None:
    """Its vector is the batch job's."""
    vectors = heard([sound(folder, number) for number in range(SOUNDS)], sounds)
    files = {"audio": ("seven.flac", sound(folder, 7))}
    answer = client.post("/v1/similar", params={"k": 50, "per_artist": 0}, files=files).json()
    assert (answer["heard"], len(answer["similar"])) == ("seven.flac", SOUNDS)
    for one in answer["similar"]:
        cosine = float(vectors[7] @ vectors[int(one["track"]["track_id"][2:])])
        assert one["similarity"] == pytest.approx((1 + cosine) / 2, abs=1e-5)


def test_what_is_no_song_is_refused(client: httpx.Client, folder: Path) -> None:
    def asked(sound: bytes) -> tuple[int, str]:
        return problem(client.post("/v1/similar", files={"audio": ("x", sound)}))

    assert asked(b"no audio at all")[0] == 415
    assert asked(b"")[0] == 415
    assert asked(sound(folder, 1)[:300])[0] in (415, 422)
    assert asked(bytes((20 << 20) + (1 << 17)))[0] == 413
    assert problem(client.post("/v1/similar", content=b"{}"))[0] == 415
    assert problem(client.post("/v1/similar", files={"sound": b"x"}))[0] == 422
    assert problem(client.post("/v1/similar", params={"source": "deezer"}))[0] == 422
    long = io.BytesIO()
    soundfile.write(long, np.zeros(8000 * 901), 8000, format="FLAC")
    status, detail = asked(long.getvalue())
    assert status == 413 and "15 minutes" in detail


def test_the_page_in_a_browser(client: httpx.Client) -> None:
    """Its list of songs, and, by a song's own address, what sounds like it."""
    assert "what sounds like this?" in client.get("/").text
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium: the page was not looked at")
    assert "The Knife" in shown(browser, str(client.base_url))
    song = shown(browser, f"{client.base_url}#t%3A12")
    assert "These sound most like “Björk 12” by The Knife 3" in song
    assert song.count('class="bar"') == 18  # three of each artist


def shown(browser: str, url: str) -> str:
    """What a browser makes of a page once its requests are answered."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
        return subprocess.run([browser, *options, url], capture_output=True, text=True, timeout=60).stdout


def test_who_cannot_be_answered_soon_is_told_when_to_come_again(client: httpx.Client) -> None:
    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=client.base_url, limits=limits, timeout=60) as several:
            ask = (
                several.get("/v1/tracks/t:1/similar", params={"k": 20, "genres": "folk"}) for _ in range(200)
            )
            return await asyncio.gather(*ask)

    answers = asyncio.run(crowd())
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 503} and counts[200] >= 4
    assert {answer.headers.get("Retry-After") for answer in answers if answer.status_code == 503} == {"1"}


def test_what_was_asked_is_measured_and_noted(client: httpx.Client, folder: Path) -> None:
    client.get("/v1/tracks", params={"q": "a secret"})
    page = client.get("/metrics").text
    count = r'songray_requests_total\{method="GET",route="/v1/tracks",status="200"\} (\d+)'
    assert float(re.search(count, page)[1]) >= 1
    assert f'songray_index_tracks{{run="mfcc-x",version="000001"}} {SOUNDS}.0' in page
    notes = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    asked = {"method": "GET", "path": "/v1/tracks", "status": 200}
    assert any(asked.items() <= note.items() for note in notes)
    assert "secret" not in str(notes)


def test_a_decoder_that_dies_harms_nobody(sounds: Library) -> None:
    listener = Encoder(sounds, RUN)
    listener.decode = ray.remote(max_retries=0)(lambda audio, config: os.kill(os.getpid(), signal.SIGKILL))
    assert asyncio.run(listener.hear(b"")).error == "decoder_died"


def test_a_decoder_s_memory_is_limited(cluster: None) -> None:
    def take(size_bytes: int) -> int:
        with suppress(MemoryError), memory_limited(1 << 28):
            return bytearray(size_bytes).count(0)
        return 0

    taken = ray.remote(take)
    assert ray.get([taken.remote(1 << 30), taken.remote(1 << 20)]) == [0, 1 << 20]


@pytest.mark.parametrize("source", ["deezer", "itunes"])
def test_a_song_is_searched_elsewhere(client: httpx.Client, elsewhere: ExternalSources, source: str) -> None:
    found = client.post("/v1/similar", params={"source": source, "q": "artist 7"}).json()
    assert found["heard"].startswith(f"{source}:7")
    assert found["similar"][0]["track"]["track_id"] == "t:5"
    assert found["similar"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    nothing = client.post("/v1/similar", params={"source": source, "q": "artist 999"})
    assert problem(nothing) == (404, f"{source} finds nothing for 'artist 999'")
    guarded = replace(elsewhere, preview_hosts=ExternalSources().preview_hosts)
    with pytest.raises(Refusal, match=r"lies on '127\.0\.0\.1', which is none of dzcdn\.net"):
        asyncio.run(guarded.first(source, "artist 7"))


def test_a_new_version_goes_live_under_load_and_no_question_fails(
    client: httpx.Client, sounds: Library, folder: Path
) -> None:
    with asking(client, "/v1/tracks/t:3/similar?k=100&per_artist=0") as answers:
        grow(client, sounds, folder)
    assert versions_in_turn(answers) == ["000001", "000002"]


@pytest.mark.slow
def test_another_version_is_deployed_under_load_and_no_question_fails(
    client: httpx.Client, sounds: Library, config: ServeConfig, folder: Path
) -> None:
    grow(client, sounds, folder)
    with asking(client, "/v1/tracks/t:3/similar?k=100&per_artist=0") as answers:
        deploy(sounds, replace(config, version="000001"))
        wait_for_version(client, "000001")
        deploy(sounds, config)  # the newest
        wait_for_version(client, "000002")
    assert versions_in_turn(answers) == ["000002", "000001", "000002"]


def grow(client: httpx.Client, sounds: Library, folder: Path) -> None:
    """A second version, of four tracks more, unless it is there; until it answers."""
    if client.get("/readyz").json()["version"] == "000001":
        add(sounds, folder, range(SOUNDS, SOUNDS + 4))
        index(sounds, IndexConfig(links=8))
    wait_for_version(client, "000002")


def versions_in_turn(answers: list[httpx.Response]) -> list[str]:
    """Those that the answers come from, each of which is whole."""
    assert {answer.status_code for answer in answers} == {200}
    told = [answer.json() for answer in answers]
    expected = {"000001": SOUNDS - 1, "000002": SOUNDS + 3}
    assert all(len(answer["similar"]) == expected[answer["version"]] for answer in told)
    return [version for version, _ in groupby(answer["version"] for answer in told)]


@contextmanager
def asking(client: httpx.Client, path: str) -> Iterator[list[httpx.Response]]:
    """Ask a question over and over; the answers, of which one has come."""
    answers: list[httpx.Response] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(client.get(path))
            ended.wait(0.02)  # and leave some of the machine to what is asked

    thread = threading.Thread(target=ask)
    thread.start()
    while not answers:
        time.sleep(0.01)
    yield answers
    ended.set()
    thread.join()


def wait_for_version(client: httpx.Client, version: str) -> None:
    for _ in range(300):
        if client.get("/readyz").json()["version"] == version:
            return
        time.sleep(0.05)
    raise AssertionError(f"version {version} has not come")


def test_who_sends_too_slowly_is_told_so(sounds: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BODY_SECONDS", 0.3)
    with (
        answering(sounds, IngressConfig()) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as connection,
    ):
        connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in answer
        assert httpx.get(f"{url}/healthz").is_success


def test_other_pages_may_ask_where_they_are_named(sounds: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "sesame")
    ask = {"Origin": "https://x.test", "Access-Control-Request-Method": "GET"}
    allowed = []
    for origins in ((), ("https://x.test",)):
        with answering(sounds, IngressConfig(cors_origins=origins)) as url:
            asked = httpx.options(f"{url}/v1/tracks", headers=ask)
            allowed.append((asked.is_success, asked.headers.get("Access-Control-Allow-Origin")))
    assert allowed == [(False, None), (True, "https://x.test")]


def test_the_file_for_deployment_holds_what_there_is(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "serve.yaml"
    (described,) = ServeDeploySchema(**yaml.safe_load(path.read_text())).applications
    assert described.import_path == f"{build.__module__}:{build.__name__}"
    names = [field.name for field in fields(IngressConfig)]
    assert set(described.args) <= {"library", "version", *names}
    build({**described.args, "library": str(tmp_path)})
    with pytest.raises(ValueError, match="slots is -1: must be at least 0"):
        build({"library": str(tmp_path), "slots": -1})


def test_a_port_that_is_taken_is_named(sounds: Library) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ValueError, match=f"--port {port} on 127.0.0.1"),
            served(sounds, ServeConfig(port=port)),
        ):
            pass


def test_no_index_no_service(library: Library, sounds: Library) -> None:
    with pytest.raises(ValueError, match=r"run jobs/train\.py first"), served(library, ServeConfig()):
        pass
    absent = ServeConfig(version="000009")
    with (
        pytest.raises(ValueError, match=r"--version 000009: indexes/mfcc-x has 00000"),
        served(sounds, absent),
    ):
        pass


@pytest.mark.slow
def test_slots_answer_as_one_index_does(client: httpx.Client, sounds: Library, folder: Path) -> None:
    """In a library of several shards, spread over two slots of which one then dies."""
    library = Library.open(str(folder / "sliced"))
    shutil.copytree(sounds.path("tracks"), library.path("tracks"))
    shutil.copytree(sounds.path("runs"), library.path("runs"))
    shutil.copytree(sounds.path("embeddings"), library.path("embeddings"))
    index(library, IndexConfig(links=8, shard_tracks=7))
    config = IngressConfig(slots=2, encoders=0, max_ongoing=20, watch_seconds=0.3)
    serve.run(bound(library, config, ""), name="sliced", route_prefix="/sliced")
    sliced = httpx.Client(base_url=f"{str(client.base_url).rstrip('/')}/sliced", timeout=30)
    question = "/v1/tracks/t:12/similar?k=50&per_artist=0"
    asked = (question, "/v1/path?from=t:1&to=t:20", "/v1/tracks?q=bjork 1", "/v1/map")
    with answering(library, config) as whole:
        for path in asked:
            assert sliced.get(path).json() == httpx.get(f"{whole}{path}").json()
    assert sliced.get("/v1/stats").json()["shards"] == 4
    assert sliced.get("/v1/tracks/t:999").status_code == 404
    complete, answers = sliced.get(question).json(), []
    lose("sliced#slot-1")
    for _ in range(100):  # until another replica has taken its place
        answers.append(sliced.get(question))
        if answers[-1].status_code == 200 and not answers[-1].json()["partial"]:
            break
    assert answers[-1].json() == complete
    known = [one["track"]["track_id"] for one in complete["similar"]]
    for answer in answers[:-1]:
        if answer.status_code == 503:  # the seed itself was lost
            assert problem(answer)[1].startswith("a part of the index")
        else:
            found = [one["track"]["track_id"] for one in answer.json()["similar"]]
            assert answer.json()["partial"] and found == [name for name in known if name in found]
    serve.delete("sliced")


def lose(deployment: str) -> None:
    """End a replica's process."""
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = (name for name in names if f"{deployment}#" in name)
    ray.kill(ray.get_actor(name, namespace="serve"))


@pytest.mark.slow
def test_the_api_is_as_its_document_says(sounds: Library, tmp_path: Path) -> None:
    """What schemathesis makes of the document: no answer that it does not describe, no failure inside."""
    with answering(sounds, IngressConfig()) as url:
        tool = str(Path(sys.executable).with_name("schemathesis"))
        options = ["--max-examples=25", "--seed=0", "--no-color", "--suppress-health-check=all",
                   "--checks=all", "--exclude-checks=positive_data_acceptance"]  # fmt: skip
        command = [tool, "run", f"{url}/openapi.json", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-5000:]
