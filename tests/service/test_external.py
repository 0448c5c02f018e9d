from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import fakes
import pytest
from aiohttp import web
from fakes.deezer import FakeDeezer
from fakes.itunes import FakeItunes
from starlette.exceptions import HTTPException

from songray.catalogue.sources.deezer import DeezerApi
from songray.catalogue.sources.itunes import ItunesApi
from songray.catalogue.sources.registry import SEARCHABLE, AudioServices
from songray.service import external
from songray.service.external import first_preview

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
    track_id, audio = asyncio.run(first_preview(services, source, "artist 7"))
    assert track_id.startswith(f"{source}:7") and audio == CONTENT


@pytest.mark.parametrize("source", SEARCHABLE)
def test_a_search_without_results_is_not_found(services: AudioServices, source: str) -> None:
    with pytest.raises(HTTPException, match=f"{source} finds nothing for 'artist 999'") as raised:
        asyncio.run(first_preview(services, source, "artist 999"))
    assert raised.value.status_code == 404


@pytest.mark.parametrize("source", SEARCHABLE)
def test_previews_are_fetched_from_configured_hosts_alone(services: AudioServices, source: str) -> None:
    hosts = AudioServices().preview_hosts
    guarded = AudioServices(
        replace(services.deezer, deezer_preview_hosts=AudioServices().deezer.deezer_preview_hosts),
        replace(services.itunes, itunes_preview_hosts=AudioServices().itunes.itunes_preview_hosts),
    )
    with pytest.raises(HTTPException, match=r"on '127\.0\.0\.1', which is none of dzcdn\.net") as raised:
        asyncio.run(first_preview(guarded, source, "artist 7"))
    assert raised.value.status_code == 502 and ", ".join(hosts) in raised.value.detail


def test_a_preview_that_is_too_large_is_rejected(
    services: AudioServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "AUDIO_BYTES", 4)
    with pytest.raises(HTTPException, match="larger than 4 bytes") as raised:
        asyncio.run(first_preview(services, SEARCHABLE[0], "artist 7"))
    assert raised.value.status_code == 502
