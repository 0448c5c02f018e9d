"""Mutated inputs at all doors lose nothing and stop nothing: a part of benchmarks/bench_mutations.py."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import doors
import mutations
import pytest
from doors import Door
from serving import LocalService, local_service, shared_library

from songray.learning.encoder import Encoder
from songray.library import Library, Vectors
from songray.service.api_keys import VARIABLE
from songray.service.ingress import Ingress
from songray.service.options import IngressConfig
from songray.service.uploads import UploadEncoder, encode_uploads

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"14 {request.node.name}")


@pytest.fixture(scope="module")
def sounds() -> list[bytes]:
    return mutations.sounds()


def check(door: Door) -> None:
    assert door.is_sound and door.inputs and door.beside, "\n".join([str(door), *door.failures])
    assert door.accepted + door.refused.total() == door.inputs, door


def test_what_dies_hangs_or_raises_is_counted() -> None:
    door = Door("")
    door.apart(os._exit, 1, seconds=60)
    door.apart(int, "no number", seconds=60)
    door.apart(time.sleep, 60, seconds=0.5)
    door.expect({1, 2}, {2})
    assert (door.crashes, door.hangs, door.lost, door.is_sound) == (2, 1, 1, False)


def test_files_in_a_folder(
    draw: random.Random, sounds: list[bytes], library: Library, tmp_path: Path
) -> None:
    check(doors.music_folder(draw, sounds, 20, library, tmp_path / "music"))


@pytest.mark.parametrize("door", [doors.manifests, doors.playlists])
def test_manifests(draw: random.Random, library: Library, tmp_path: Path, door: object) -> None:
    check(door(draw, 12, library, tmp_path / "lists"))


@pytest.mark.parametrize("door", [doors.deezer, doors.itunes, doors.spotify])
def test_answers_of_sources(draw: random.Random, library: Library, door: object) -> None:
    check(door(draw, 9, library))


async def encode_alone(upload: tuple[Encoder, dict[str, bytes]]) -> Vectors:
    return encode_uploads([upload])[0]


class UploadService(LocalService):
    """With the encoder of the deployment, in this process."""

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        encoder = UploadEncoder(library)
        encoder.encode = encode_alone  # batches need Ray Serve
        self.encoder = SimpleNamespace(embed=SimpleNamespace(remote=encoder.embed))

    embed = Ingress.embed


@pytest.fixture(scope="module")
def service(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    library, _ = shared_library(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, doors.KEY)
        with local_service(library, IngressConfig(), service=UploadService(library)) as url:
            yield url


def test_uploads(
    draw: random.Random, sounds: list[bytes], service: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(doors.uploads(draw, sounds, 20, service, shared_library(tmp_path_factory)[1]))


@pytest.mark.parametrize("door", [doors.query_strings, doors.opensubsonic, doors.bodies])
def test_requests(draw: random.Random, service: str, door: object) -> None:
    check(door(draw, 20, service))
