"""Some 2,000 mutated inputs at all doors: files, uploads, manifests, playlists, answers, and requests.

    python -m pytest -q -s --timeout=0 tests/benchmarks/bench_mutations.py

For each door: inputs; those that were accepted, and those that were refused in whole or in part by the class
of the error; processes that died and exceptions that left a stage; answers 5xx; deadlines that passed; and
good rows or requests beside the mutated ones that were lost. The last row is of schemathesis, which generates
requests from the service's own document. Environment: SEED, 14; SCALE, 1.0, times the inputs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import doors
import fakes
import mutations
import pytest
from conftest import free_port
from doors import Door
from fakes.deezer import FakeDeezer
from fakes.itunes import FakeItunes
from serving import shared_library
from tabulate import tabulate

from songray.catalogue.sources.deezer import DeezerApi
from songray.catalogue.sources.itunes import ItunesApi
from songray.catalogue.sources.registry import AudioServices
from songray.library import Library
from songray.service.api_keys import VARIABLE
from songray.service.app import served
from songray.service.options import IngressConfig, ServeConfig

SEED = os.environ.get("SEED", "14")
LOCAL = ("127.0.0.1",)
SCALE = float(os.environ.get("SCALE", 1))
INPUTS = {
    "music_folder": 400, "manifests": 250, "playlists": 150, "deezer": 180, "itunes": 120, "spotify": 120,
    "uploads": 300, "query_strings": 250, "opensubsonic": 150, "bodies": 200,
}  # fmt: skip


def at_files_and_sources(folder: Path, sounds: list[bytes]) -> list[Door]:
    measured = []
    for name in ("music_folder", "manifests", "playlists", "deezer", "itunes", "spotify"):
        library = Library.open(str(folder / name / "library"))
        given = (Random(f"{SEED} {name}"), *([sounds] if name == "music_folder" else []))
        files = () if name in ("deezer", "itunes", "spotify") else (folder / name / "files",)
        measured.append(show(getattr(doors, name)(*given, round(SCALE * INPUTS[name]), library, *files)))
    return measured


def at_the_service(url: str, sounds: list[bytes], clips: Path) -> list[Door]:
    measured = []
    for name in ("uploads", "query_strings", "opensubsonic", "bodies"):
        count, random = round(SCALE * INPUTS[name]), Random(f"{SEED} {name}")
        if name == "uploads":
            measured.append(show(doors.uploads(random, sounds, count, url, clips)))
        else:
            measured.append(show(getattr(doors, name)(random, count, url)))
    return measured


@contextmanager
def sources() -> Iterator[AudioServices]:
    """External sources whose previews are no audio."""
    with (
        fakes.served(FakeDeezer().application()) as deezer_url,
        fakes.served(FakeItunes().application()) as itunes_url,
    ):
        yield AudioServices(
            DeezerApi(deezer_url, 10_000, deezer_preview_hosts=LOCAL),
            ItunesApi(itunes_url, 1_000_000, itunes_preview_hosts=LOCAL),
        )


def generated(url: str, folder: Path) -> Door:
    """Requests that schemathesis generates from the OpenAPI document, most of which violate it."""
    started, door = time.monotonic(), Door("schemathesis")
    tool = str(Path(sys.executable).with_name("schemathesis"))
    options = ["--max-examples=40", f"--seed={int(SEED)}", "--no-color", "--suppress-health-check=all",
               "--checks=not_a_server_error", "--mode=all",
               f"--header=Authorization: Bearer {doors.KEY}"]  # fmt: skip
    command = [tool, "run", f"{url}/openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if match := re.search(r"(\d[\d,]*) generated", done.stdout):
        door.inputs = int(match[1].replace(",", ""))
    door.server_errors = int(done.returncode != 0)
    door.failures += [done.stdout[-5000:]] * door.server_errors
    door.seconds = time.monotonic() - started
    return show(door)


def show(door: Door) -> Door:
    print(door.name, *door.failures, sep="\n    ", flush=True)
    return door


@pytest.mark.timeout(0)
def test_mutations(
    cluster: None,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, doors.KEY)
    sounds = mutations.sounds()
    measured = at_files_and_sources(tmp_path, sounds)
    library, clips = shared_library(tmp_path_factory)
    with sources() as external:
        config = ServeConfig(port=free_port(), ingress=IngressConfig(external=external))
        with served(library, config) as url:
            measured += at_the_service(url, sounds, clips)
            measured.append(generated(url, tmp_path))
    total = sum(door.inputs for door in measured[:-1])
    print(f"\n{total} mutated inputs of seed {SEED}, and {measured[-1].inputs} generated requests\n")
    print(tabulate(map(doors.table_row, measured), doors.HEADS, tablefmt="github"))
    assert all(door.is_sound for door in measured)
