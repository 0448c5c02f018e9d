from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import fakes
import httpx
import pytest
from aiohttp import web
from fakes.deezer import FakeDeezer
from fakes.itunes import FakeItunes
from serving import LocalService, local_service, shared_library
from starlette.exceptions import HTTPException

from songray.catalogue.sources.deezer import DeezerApi
from songray.catalogue.sources.itunes import ItunesApi
from songray.catalogue.sources.registry import SEARCHABLE, AudioServices
from songray.service import external
from songray.service.external import ExternalSources, first_preview
from songray.service.options import IngressConfig

LOCAL = ("127.0.0.1",)
CONTENT = b"audio of a preview"


@pytest.fixture(scope="module")
def services(cluster: None) -> Iterator[AudioServices]:
    async def preview(request: web.Request) -> web.Response:
        return web.Response(body=CONTENT)

    deezer, itunes = FakeDeezer(), FakeItunes()
    deezer._preview = itunes._preview = preview
    with fakes.served(deezer.application()) as deezer_url, fakes.served(itunes.application()) as itunes_url:
        yield AudioServices(
            DeezerApi(deezer_url, deezer_preview_hosts=LOCAL),
            ItunesApi(itunes_url, itunes_preview_hosts=LOCAL),
        )


@pytest.mark.parametrize("source", SEARCHABLE)
def test_the_first_result_is_fetched(services: AudioServices, source: str) -> None:
    track_id, audio = first_preview(services, source, "artist 7")
    assert track_id.startswith(f"{source}:7") and audio == CONTENT


@pytest.mark.parametrize("source", SEARCHABLE)
def test_a_search_without_results_is_not_found(services: AudioServices, source: str) -> None:
    with pytest.raises(HTTPException, match=f"{source} finds nothing for 'artist 999'") as raised:
        first_preview(services, source, "artist 999")
    assert raised.value.status_code == 404


@pytest.mark.parametrize("source", SEARCHABLE)
def test_previews_are_fetched_from_configured_hosts_alone(services: AudioServices, source: str) -> None:
    hosts = AudioServices().preview_hosts
    guarded = AudioServices(
        replace(services.deezer, deezer_preview_hosts=AudioServices().deezer.deezer_preview_hosts),
        replace(services.itunes, itunes_preview_hosts=AudioServices().itunes.itunes_preview_hosts),
    )
    with pytest.raises(HTTPException, match=r"on '127\.0\.0\.1', which is none of dzcdn\.net") as raised:
        first_preview(guarded, source, "artist 7")
    assert raised.value.status_code == 502 and ", ".join(hosts) in raised.value.detail


def test_a_preview_that_is_too_large_is_rejected(
    services: AudioServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "AUDIO_BYTES", 4)
    with pytest.raises(HTTPException, match="larger than 4 bytes") as raised:
        first_preview(services, SEARCHABLE[0], "artist 7")
    assert raised.value.status_code == 502


class SlowDeezer:
    """Answers searches, with no track, once it is released."""

    def __init__(self) -> None:
        self.requests, self.released = 0, threading.Event()

    async def search(self, request: web.Request) -> web.Response:
        self.requests += 1
        while not self.released.is_set():
            await asyncio.sleep(0.01)
        return web.json_response({"data": [], "total": 0})

    @contextmanager
    def served(self) -> Iterator[AudioServices]:
        application = web.Application()
        application.router.add_get("/search", self.search)
        with fakes.served(application) as url:
            yield AudioServices(DeezerApi(url, deezer_requests_per_second=1000))
            self.released.set()


def test_a_search_is_answered_while_requests_wait_for_external_sources(
    cluster: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = 40  # more than asyncio has threads by default
    slow = SlowDeezer()
    with (
        slow.served() as services,
        local_service(shared_library(tmp_path_factory)[0], IngressConfig()) as url,
        ThreadPoolExecutor(requests) as clients,
    ):
        sources = ExternalSources(services, requests)

        async def wait_for_source(service: LocalService, source: str, words: str) -> tuple[str, bytes]:
            return await sources.first_preview("deezer", words)

        monkeypatch.setattr(LocalService, "first_preview", wait_for_source)
        query = f"{url}/v1/similar?source=deezer&q=x"
        similar = [clients.submit(httpx.post, query, timeout=60) for _ in range(requests)]
        while slow.requests < 6:
            time.sleep(0.01)
        try:
            assert httpx.get(f"{url}/v1/tracks?q=knife", timeout=8).json()["tracks"]
            assert not any(request.done() for request in similar)
        finally:
            slow.released.set()
        assert {request.result().status_code for request in similar} == {404}


def test_requests_wait_for_external_sources_in_limits(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "PATIENCE_SECONDS", 0.2)
    slow = SlowDeezer()

    async def ask() -> None:
        sources = ExternalSources(services, at_once=1)
        for detail in ("deezer has not answered within 0.2 s", "too many requests wait for external sources"):
            with pytest.raises(HTTPException, match=detail) as raised:
                await sources.first_preview("deezer", "x")
            assert (raised.value.status_code, raised.value.headers) == (503, {"Retry-After": "1"})
        track = {"track_id": "x:1", "source": "folder", "isrc": None, "location": "/music/a.mp3"}
        assert (await sources.locate(track)).url == "/music/a.mp3"  # no source is asked for it
        with pytest.raises(HTTPException, match="too many requests wait for external sources"):
            await sources.locate(track | {"source": "deezer", "location": "deezer:1"})
        slow.released.set()
        while raised.value.status_code == 503:  # until the first request has ended
            await asyncio.sleep(0.01)
            with pytest.raises(HTTPException) as raised:
                await sources.first_preview("deezer", "x")
        assert raised.value.detail == "deezer finds nothing for 'x'"

    with slow.served() as services:
        asyncio.run(ask())
