"""The application on Ray Serve: uploads, external sources, overload, new versions, and its start and end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path

import fakes
import httpx
import pytest
import yaml
from aiohttp import web
from conftest import free_port
from fakes.deezer import FakeDeezer
from fakes.itunes import FakeItunes
from ray.serve.schema import ServeDeploySchema
from serving import (
    CLIPS,
    RUN,
    add_embeddings,
    add_tracks,
    clip,
    copied_library,
    embed_clips,
    problem,
    save_run,
)

from songray.catalogue.sources.deezer import DeezerApi
from songray.catalogue.sources.itunes import ItunesApi
from songray.catalogue.sources.registry import SEARCHABLE, AudioServices
from songray.errors import InvalidOption, MissingInput
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.service import app
from songray.service.api_keys import VARIABLE
from songray.service.app import build, deploy, served
from songray.service.options import IngressConfig, ServeConfig

LOCAL = ("127.0.0.1",)


@pytest.fixture(scope="module")
def copied(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, Path]:
    return copied_library(tmp_path_factory)


@pytest.fixture(scope="module")
def growing(copied: tuple[Library, Path]) -> Library:
    """A library to which tests add tracks."""
    return copied[0]


@pytest.fixture(scope="module")
def folder(copied: tuple[Library, Path]) -> Path:
    return copied[1]


@pytest.fixture(scope="module")
def external(folder: Path) -> Iterator[AudioServices]:
    """Sources all of whose previews are the clip of t:5."""

    async def preview(request: web.Request) -> web.Response:
        return web.Response(body=clip(folder, 5))

    deezer, itunes = FakeDeezer(), FakeItunes()
    deezer._preview = itunes._preview = preview
    with fakes.served(deezer.application()) as deezer_url, fakes.served(itunes.application()) as itunes_url:
        yield AudioServices(
            DeezerApi(deezer_url, deezer_preview_hosts=LOCAL),
            ItunesApi(itunes_url, itunes_preview_hosts=LOCAL),
        )


@pytest.fixture(scope="module")
def config(external: AudioServices) -> ServeConfig:
    ingress = IngressConfig(watch_seconds=0.3, max_ongoing=4, max_queued=8, external=external)
    return ServeConfig(port=free_port(), ingress=ingress)


@pytest.fixture(scope="module")
def client(growing: Library, config: ServeConfig) -> Iterator[httpx.Client]:
    with served(growing, config) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def test_an_uploaded_file_has_the_vector_of_the_batch_job(
    client: httpx.Client, growing: Library, folder: Path
) -> None:
    vectors = embed_clips([clip(folder, number) for number in range(CLIPS)], growing)
    files = {"audio": ("seven.flac", clip(folder, 7))}
    response = client.post("/v1/similar", params={"k": 50, "per_artist": 0}, files=files).json()
    assert (response["query"], len(response["similar"])) == ("seven.flac", CLIPS)
    for match in response["similar"]:
        cosine = float(vectors[7] @ vectors[int(match["track"]["track_id"].removeprefix("t:"))])
        assert match["cosine"] == pytest.approx(cosine, abs=1e-3)
        assert match["nearest_seed"] is match["nearest_seed_similarity"] is None


def test_an_upload_that_is_no_audio_is_rejected(client: httpx.Client) -> None:
    for audio in (b"no audio at all", b""):
        assert problem(client.post("/v1/similar", files={"audio": ("x", audio)}))[0] == 415
    too_large = bytes((20 << 20) + (1 << 17))
    assert problem(client.post("/v1/similar", files={"audio": ("x", too_large)}))[0] == 413


@pytest.mark.parametrize("source", SEARCHABLE)
def test_an_external_source_is_searched(client: httpx.Client, source: str) -> None:
    response = client.post("/v1/similar", params={"source": source, "q": "artist 7"}).json()
    assert response["query"].startswith(f"{source}:7")
    nearest = max(response["similar"], key=lambda match: match["cosine"])
    assert (nearest["track"]["track_id"], nearest["cosine"]) == ("t:5", pytest.approx(1, abs=1e-3))
    nothing = client.post("/v1/similar", params={"source": source, "q": "artist 999"})
    assert problem(nothing) == (404, f"{source} finds nothing for 'artist 999'")


def test_overload_is_answered_with_retry_after(client: httpx.Client) -> None:
    async def request_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=client.base_url, limits=limits, timeout=60) as concurrent:
            parameters = {"k": 20, "genres": "folk"}
            requests = (concurrent.get("/v1/tracks/t:1/similar", params=parameters) for _ in range(200))
            return await asyncio.gather(*requests)

    responses = asyncio.run(request_at_once())
    counts = Counter(response.status_code for response in responses)
    assert set(counts) == {200, 503} and counts[200] >= 4
    rejected = [response for response in responses if response.status_code == 503]
    assert {response.headers.get("Retry-After") for response in rejected} == {"1"}


def test_a_new_version_is_served_without_a_failed_request(
    client: httpx.Client, growing: Library, folder: Path
) -> None:
    with requests_during(client, "/v1/tracks/t:3/similar?k=100&per_artist=0") as responses:
        add_version(client, growing, folder)
    assert served_versions(responses) == ["000001", "000002"]


@pytest.mark.slow
def test_another_version_is_deployed_without_a_failed_request(
    client: httpx.Client, growing: Library, config: ServeConfig, folder: Path
) -> None:
    add_version(client, growing, folder)
    with requests_during(client, "/v1/tracks/t:3/similar?k=100&per_artist=0") as responses:
        deploy(growing, replace(config, version="000001"))
        wait_for_version(client, "000001")
        deploy(growing, config)  # the newest
        wait_for_version(client, "000002")
    assert served_versions(responses) == ["000002", "000001", "000002"]


def add_version(client: httpx.Client, library: Library, folder: Path) -> None:
    """Add a second version with four more tracks, unless it exists, and wait until it is served."""
    if client.get("/readyz").json()["version"] == "000001":
        add_tracks(library, folder, range(CLIPS, CLIPS + 4))
        index(library, IndexConfig(links=8))
    wait_for_version(client, "000002")


def served_versions(responses: list[httpx.Response]) -> list[str]:
    """The versions of the responses, in their order, each of which must be complete."""
    assert {response.status_code for response in responses} == {200}
    contents = [response.json() for response in responses]
    sizes = {"000001": CLIPS - 1, "000002": CLIPS + 3}
    assert all(len(content["similar"]) == sizes[content["version"]] for content in contents)
    return [version for version, _ in groupby(content["version"] for content in contents)]


@contextmanager
def requests_during(client: httpx.Client, path: str) -> Iterator[list[httpx.Response]]:
    """Send a request over and over during the context; its responses, of which one has arrived."""
    responses: list[httpx.Response] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            responses.append(client.get(path))
            ended.wait(0.02)  # leaves the processor to the service

    thread = threading.Thread(target=send)
    thread.start()
    while not responses:
        time.sleep(0.01)
    yield responses
    before = len(responses)
    while thread.is_alive() and len(responses) < before + 2:  # the last one was sent after the context
        time.sleep(0.01)
    ended.set()
    thread.join()


def wait_for_version(client: httpx.Client, version: str) -> None:
    for _ in range(300):
        if client.get("/readyz").json()["version"] == version:
            return
        time.sleep(0.05)
    raise AssertionError(f"version {version} is not served")


def test_serve_yaml_names_existing_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a-key")
    path = Path(__file__).parents[2] / "serve.yaml"
    (described,) = ServeDeploySchema(**yaml.safe_load(path.read_text())).applications
    assert described.import_path == f"{build.__module__}:{build.__name__}"
    names = [field.name for field in fields(IngressConfig)]
    assert set(described.args) <= {"library", "version", "open", *names}
    build({**described.args, "library": str(tmp_path)})
    with pytest.raises(ValueError, match="slots is -1: must be at least 0"):
        build({"library": str(tmp_path), "slots": -1})


def test_serve_build_finds_the_application_of_the_default_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "DEFAULT_LIBRARY", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "a-key")
    assert type(app.built) is type(build({}))


def test_a_port_in_use_is_named(growing: Library) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(InvalidOption, match=f"--port {port} on 127.0.0.1"),
            served(growing, ServeConfig(port=port)),
        ):
            pass


def test_a_service_needs_an_index(library: Library, growing: Library) -> None:
    with pytest.raises(MissingInput, match="run `songray train` first"), served(library, ServeConfig()):
        pass
    absent = ServeConfig(version="000009")
    with (
        pytest.raises(InvalidOption, match=r"--version 000009: indexes/mfcc-x contains 00000"),
        served(growing, absent),
    ):
        pass


@pytest.mark.slow
def test_another_run_is_deployed_without_a_failed_request(
    client: httpx.Client, growing: Library, config: ServeConfig, folder: Path
) -> None:
    """Its vectors have another length. Each answer, also to an upload, is of one run."""
    save_run(growing, "second", coefficients=3)
    add_embeddings(growing, folder, range(CLIPS), "second")
    index(growing, IndexConfig(run="second", links=8))
    other = replace(config, ingress=replace(config.ingress, run="second"))
    upload = {"files": {"audio": ("seven.flac", clip(folder, 7))}, "params": {"k": 100, "per_artist": 0}}
    uploads = []
    with requests_during(client, "/v1/tracks/t:3/similar?k=100&per_artist=0") as responses:
        for step in (lambda: None, lambda: deploy(growing, other), lambda: None):
            step()
            uploads += [client.post("/v1/similar", **upload) for _ in range(3)]
        absent = replace(config, ingress=replace(config.ingress, run="third"))
        with pytest.raises(InvalidOption, match="--run third: no such run exists"):
            deploy(growing, absent)
    assert {response.status_code for response in (*responses, *uploads)} == {200}
    for several in (responses, uploads):
        served_runs = [run for run, _ in groupby(response.json()["run"] for response in several)]
        assert served_runs == [RUN, "second"]
    for response in uploads:  # its own track is the nearest, by the vector of the run that answers
        first = response.json()["similar"][0]
        assert (first["track"]["track_id"], first["cosine"]) == ("t:7", pytest.approx(1, abs=1e-3))
    assert client.get("/readyz").json()["run"] == client.get("/v1/stats").json()["run"] == "second"
