from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from serving import RUN, shared_library
from starlette.exceptions import HTTPException

from songray.errors import InvalidOption, MissingInput
from songray.library import Library
from songray.search.version import Version
from songray.service import snapshots
from songray.service.snapshots import Snapshots, find_version


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


def test_a_version_is_found_by_name(indexed: Library, library: Library) -> None:
    assert find_version(indexed, RUN) == find_version(indexed, RUN, "000001")
    with pytest.raises(InvalidOption, match="--version 000009: indexes/mfcc-x contains 000001"):
        find_version(indexed, RUN, "000009")
    with pytest.raises(MissingInput, match="indexes/mfcc-x is empty: run `songray index` first"):
        find_version(library, RUN)


@pytest.fixture
def published(indexed: Library, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds a version to those that the library lists."""
    first = find_version(indexed, RUN)
    listed = [first]
    monkeypatch.setattr(snapshots, "versions", lambda library, run: list(listed))
    return lambda name: listed.insert(0, replace(first, version=name))


def test_the_newest_version_replaces_the_old_one_once_it_is_loaded(
    library: Library, published: Callable[[str], None]
) -> None:
    loading = asyncio.Event()

    async def load(version: Version) -> str:
        if version.version == "000002":
            await loading.wait()
        return f"index {version.version}"

    async def follow() -> list[str]:
        held = Snapshots(library, RUN, load, watch_seconds=0.01)
        with pytest.raises(HTTPException, match="the index is being loaded"):
            _ = held.current
        await held.serve("")
        served = [held.current]
        published("000002")
        await asyncio.sleep(0.1)
        served.append(held.current)
        loading.set()
        while held.current == served[0]:
            await asyncio.sleep(0.01)
        return [*served, held.current, await held.named("000001")]

    assert asyncio.run(follow()) == ["index 000001", "index 000001", "index 000002", "index 000001"]


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    library: Library, published: Callable[[str], None]
) -> None:
    attempts: list[str] = []

    async def load(version: Version) -> str:
        attempts.append(version.version)
        if version.version == "000002":
            raise OSError("damaged")
        return version.version

    async def follow() -> str:
        held = Snapshots(library, RUN, load, watch_seconds=0.01)
        await held.serve("")
        published("000002")
        while attempts.count("000002") < 2:
            await asyncio.sleep(0.01)
        return held.current

    assert asyncio.run(follow()) == "000001"


def test_a_named_version_is_served_although_there_is_a_newer_one(
    library: Library, published: Callable[[str], None]
) -> None:
    async def load(version: Version) -> str:
        return version.version

    async def pin() -> list[str]:
        held = Snapshots(library, RUN, load, watch_seconds=0.01)
        await held.serve("")
        await held.serve("000001")
        published("000002")
        await asyncio.sleep(0.1)
        served = [held.current]
        await held.serve("")
        return [*served, held.current]

    assert asyncio.run(pin()) == ["000001", "000002"]
