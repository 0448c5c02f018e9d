from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from serving import RUN, copied_library, shared_library
from starlette.exceptions import HTTPException

from songray.errors import CorruptData, InvalidOption, MissingInput
from songray.library import Library
from songray.search.index import Index
from songray.search.version import Version
from songray.service.snapshots import Snapshots, find_version

T = TypeVar("T")


@pytest.fixture
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library with version 000001 of an index."""
    return copied_library(tmp_path_factory)[0]


def run(answer: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(answer, 60))


def add_version(library: Library, name: str) -> None:
    """A version like the first one, with a shard of its own."""
    folder = Path(library.path("indexes", RUN))
    manifest = json.loads((folder / "000001" / "manifest.json").read_text())
    (entry,) = manifest["shards"]
    shutil.copytree(folder / "shards" / entry["id"], folder / "shards" / f"{name}-0000")
    entry["id"], manifest["version"] = f"{name}-0000", name
    (folder / name).mkdir()
    (folder / name / "manifest.json").write_text(json.dumps(manifest))


def delete_part(library: Library, part: str) -> None:
    path = Path(library.path("indexes", RUN, part))
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The texts that the service logs."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ray.serve")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def test_a_version_is_found_by_name(
    cluster: None, library: Library, tmp_path_factory: pytest.TempPathFactory
) -> None:
    indexed = shared_library(tmp_path_factory)[0]
    assert find_version(indexed, RUN) == find_version(indexed, RUN, "000001")
    with pytest.raises(InvalidOption, match="--version 000009: indexes/mfcc-x contains 000001"):
        find_version(indexed, RUN, "000009")
    with pytest.raises(MissingInput, match="indexes/mfcc-x is empty: run `songray index` first"):
        find_version(library, RUN)


def test_the_newest_version_replaces_the_old_one_once_it_is_loaded(indexed: Library) -> None:
    loading = asyncio.Event()

    async def load(version: Version) -> str:
        if version.version == "000002":
            await loading.wait()
        return f"index {version.version}"

    async def follow() -> list[str]:
        held = Snapshots(indexed, RUN, load, watch_seconds=0.01)
        with pytest.raises(HTTPException, match="the index is being loaded"):
            _ = held.current
        await held.serve("")
        served = [held.current]
        add_version(indexed, "000002")
        await asyncio.sleep(0.1)
        served.append(held.current)
        loading.set()
        while held.current == served[0]:
            await asyncio.sleep(0.01)
        return [*served, held.current, await held.named("000001")]

    assert run(follow()) == ["index 000001", "index 000001", "index 000002", "index 000001"]


PARTS = ["{0}", "{0}/manifest.json", "shards/{0}-0000", "shards/{0}-0000/names.sqlite"]


@pytest.mark.parametrize("part", PARTS[2:])
def test_a_version_that_disappears_while_it_is_opened_leaves_the_next_newest(
    indexed: Library, log: list[str], part: str
) -> None:
    async def load(version: Version) -> Index:
        if version.version == "000003":
            delete_part(indexed, part.format("000003"))
        return await asyncio.to_thread(Index.open, indexed, version)

    async def follow() -> list[str]:
        held = Snapshots(indexed, RUN, load, watch_seconds=0.01)
        await held.serve("")
        served = [held.current.version.version]
        add_version(indexed, "000003")
        add_version(indexed, "000002")
        while held.current.version.version == "000001":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # several polls
        return [*served, held.current.version.version]

    assert run(follow()) == ["000001", "000002"]
    (text,) = log
    assert text.startswith("indexes/mfcc-x: version 000003 cannot be opened: ")
    assert text.endswith("; version 000001 is still served")


@pytest.mark.parametrize("part", PARTS)
def test_a_service_starts_with_the_newest_version_that_can_be_opened(
    indexed: Library, log: list[str], part: str
) -> None:
    async def load(version: Version) -> Index:
        return await asyncio.to_thread(Index.open, indexed, version)

    async def start() -> str:
        held = Snapshots(indexed, RUN, load, watch_seconds=10)
        await held.serve("")
        return held.current.version.version

    for name in ("000002", "000003"):
        add_version(indexed, name)
    delete_part(indexed, part.format("000003"))
    assert run(start()) == "000002"
    for name in ("000001", "000002"):
        shutil.rmtree(indexed.path("indexes", RUN, name))
    if "shards" in part:
        with pytest.raises(CorruptData, match="000003-0000"):
            run(start())
    else:
        with pytest.raises(MissingInput, match="indexes/mfcc-x is empty"):
            run(start())


def test_the_version_that_is_served_may_disappear(indexed: Library, log: list[str]) -> None:
    async def load(version: Version) -> Index:
        return await asyncio.to_thread(Index.open, indexed, version)

    async def follow() -> dict[str, object]:
        held = Snapshots(indexed, RUN, load, watch_seconds=0.01)
        await held.serve("")
        shutil.rmtree(indexed.path("indexes", RUN))
        while not log:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return await held.current.find(["t:1"])

    assert list(run(follow())) == ["t:1"]
    assert log == [
        "indexes/mfcc-x: version 000001 has disappeared from storage; version 000001 is still served"
    ]


def test_a_version_that_cannot_be_opened_is_logged_once_and_tried_again(
    indexed: Library, log: list[str]
) -> None:
    attempts: list[str] = []

    async def load(version: Version) -> str:
        attempts.append(version.version)
        if version.version == "000002" and attempts.count("000002") < 5:
            raise OSError("damaged")
        return version.version

    async def follow() -> list[str]:
        held = Snapshots(indexed, RUN, load, watch_seconds=0.01)
        await held.serve("")
        add_version(indexed, "000002")
        while attempts.count("000002") < 4:
            await asyncio.sleep(0.01)
        served = [held.current]
        while held.current == "000001":
            await asyncio.sleep(0.01)
        return [*served, held.current]

    assert run(follow()) == ["000001", "000002"]
    assert len(log) == 1 and "version 000002 cannot be opened: damaged" in log[0]


def test_a_named_version_is_served_although_there_is_a_newer_one(indexed: Library) -> None:
    async def load(version: Version) -> str:
        return version.version

    async def pin() -> list[str]:
        held = Snapshots(indexed, RUN, load, watch_seconds=0.01)
        await held.serve("")
        await held.serve("000001")
        add_version(indexed, "000002")
        await asyncio.sleep(0.1)
        served = [held.current]
        await held.serve("")
        return [*served, held.current]

    assert run(pin()) == ["000001", "000002"]
