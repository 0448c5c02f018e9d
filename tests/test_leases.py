"""One process at a time writes an output."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.object_storage import ObjectStorage, object_storage

from songray import leases
from songray.errors import Conflict
from songray.library import Library
from songray.storage import create

HOLD = """
import sys, time
from songray.library import Library
with Library.open(sys.argv[1]).lease("tracks"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    with object_storage() as storage:
        yield storage


@pytest.fixture(params=["folder", "s3"])
def anywhere(request: pytest.FixtureRequest, library: Library, storage: ObjectStorage) -> Library:
    """A library in a folder, and one in object storage."""
    return library if request.param == "folder" else storage.library("leases")


def test_of_several_creators_of_a_file_one_succeeds(anywhere: Library) -> None:
    path = anywhere.path("file")
    anywhere.filesystem.create_dir(anywhere.root)
    contents = [f"content of {number}".encode() for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda content: create(anywhere.filesystem, path, content), contents))
    (winner,) = [content for content, first in zip(contents, created, strict=True) if first]
    assert anywhere.filesystem.open_input_stream(path).read() == winner
    assert create(anywhere.filesystem, path, winner)  # a request that is repeated has succeeded
    assert [info.base_name for info in anywhere.filesystem.get_file_info(selector(anywhere))] == ["file"]


def selector(library: Library) -> object:
    import pyarrow.fs

    return pyarrow.fs.FileSelector(library.root)


def test_a_lease_is_held_by_one_and_free_after_it(anywhere: Library) -> None:
    with anywhere.lease("tracks") as first, anywhere.lease("embeddings/run") as other:
        with pytest.raises(Conflict, match=r"tracks is being written by another process: .* --take-over"):
            anywhere.lease("tracks").__enter__()
        first.check()
        other.check()
    with anywhere.lease("tracks") as second:
        second.check()
        with pytest.raises(Conflict, match="was taken over"):
            first.check()


def test_who_was_taken_over_learns_of_it_and_cannot_take_it_back(anywhere: Library) -> None:
    with anywhere.lease("tracks") as first:
        with replace(anywhere, take_over=True).lease("tracks") as second:
            with pytest.raises(Conflict, match="was taken over"):
                first.check()
            first.renew()  # a renewal that was under way
            second.check()
        with pytest.raises(Conflict, match="was taken over"):
            first.check()


def test_the_lease_of_a_killed_process_is_free_at_once(library: Library) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, library.root], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(Conflict, match=f"process {process.pid} on "):
        library.lease("tracks").__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with library.lease("tracks") as lease:
        lease.check()


def test_the_lease_of_another_machine_expires(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with library.lease("tracks") as lease:
        path = Path(lease.path)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another", "pid": 2**22 + 1}))
        with pytest.raises(Conflict):
            library.lease("tracks").__enter__()
        monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0)
        with library.lease("tracks") as second:
            second.check()


def test_a_lease_that_is_held_is_renewed(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    with library.lease("tracks") as lease:
        first = json.loads(Path(lease.path).read_text())["renewed"]
        deadline = time.monotonic() + 30
        while json.loads(Path(lease.path).read_text())["renewed"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
