from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest
from fakes import served
from fakes.deezer import FakeDeezer, isrc

from songray import web
from songray.catalogue.sources.base import AudioLocation
from songray.catalogue.sources.deezer import DeezerApi
from songray.catalogue.sources.names import SOURCE_NAMES
from songray.catalogue.sources.registry import SEARCHABLE, SOURCES, AudioServices, SearchableSource
from songray.errors import FetchError


def locate(services: AudioServices, isrc_source: str = "none", **track: Any) -> AudioLocation:
    async def open_and_locate() -> AudioLocation:
        async with web.session() as session:
            row = {"location": None, "isrc": None, "source": "manifest"} | track
            return await services.locate(row, session, isrc_source)

    return asyncio.run(open_and_locate())


def test_every_source_has_its_name_and_can_be_made_without_options() -> None:
    assert tuple(SOURCES) == SOURCE_NAMES
    for name, source in SOURCES.items():
        assert source().name == name


@pytest.mark.parametrize("location", ["http://x.test/1.mp3", "/music/a:b.mp3", "no scheme://"])
def test_a_url_or_a_path_is_its_own_location(location: str) -> None:
    assert locate(AudioServices(), location=location) == AudioLocation(location)


@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_only_links_of_public_catalogues_must_be_public(source: str) -> None:
    located = locate(AudioServices(), location="http://x.test/1.mp3", source=source)
    assert located.is_public == (source in ("deezer", "itunes", "spotify"))


@pytest.mark.usefixtures("cluster")
def test_a_reference_or_an_isrc_is_located_by_its_service() -> None:
    with served(FakeDeezer().application()) as url:
        services = AudioServices(DeezerApi(url, deezer_requests_per_second=10_000))
        by_reference = locate(services, location="deezer:4105", source="deezer")
        by_isrc = locate(services, "deezer", isrc=isrc(4105), source="spotify")
        for located in (by_reference, by_isrc):
            assert located.url.startswith(f"{url}/preview/4105?")
            assert (located.audio_id, located.is_public, located.expires) == ("deezer:4105", True, True)


@pytest.mark.parametrize(("isrc_source", "code"), [("deezer", None), ("none", "ZZ1230000001")])
def test_a_track_without_location_may_get_one_later(isrc_source: str, code: str | None) -> None:
    with pytest.raises(FetchError) as error:
        locate(AudioServices(), isrc_source, isrc=code)
    assert (error.value.kind, error.value.retryable) == ("no_location", True)


def test_every_searchable_source_can_be_searched() -> None:
    names: tuple[SearchableSource, ...] = get_args(SearchableSource)
    assert names == SEARCHABLE
    for name in names:
        source = AudioServices().search(name, "miles davis")
        assert source.name == name
        assert "miles+davis" in next(source.pages()).name
