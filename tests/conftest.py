"""What the tests share: one Ray for the session, real music, and a local HTTP server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hypothesis
import numpy as np
import pytest
import ray
import soundfile

from songray.cluster import ENVIRONMENT, LOCAL_LOGICAL_CPUS, configure_ray_data
from songray.library import Library

os.environ.update(ENVIRONMENT)
hypothesis.settings.register_profile("songray", deadline=None)  # a first example may load a library
hypothesis.settings.load_profile("songray")
# Ray's files lie in a folder of our own: in the shared one, a Ray that was killed may have left its address,
# which every training asks in vain for up to 12 s. The path is short since sockets lie in it.
RAY_FILES = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = RAY_FILES.name
os.environ["HF_HOME"] = f"{RAY_FILES.name}/huggingface"  # where the transformers library caches code

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT.parent / "shared" / "clips"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray of our own, with as many logical CPUs as a job starts it with on two cores."""
    ray.init(
        "local",
        num_cpus=LOCAL_LOGICAL_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 << 20,
    )
    configure_ray_data()
    yield
    ray.shutdown()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(str(tmp_path / "library"))


@pytest.fixture(scope="session")
def clips() -> Path:
    """Real music; the tests that need it skip where it is missing."""
    if not CLIPS.is_dir():
        pytest.skip(f"no real music at {CLIPS}")
    return CLIPS


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class FileServer:
    """A real HTTP server of a folder's files; `requests` counts them by path."""

    def __init__(self, folder: Path) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve_folder() -> Iterator[object]:
    servers: list[FileServer] = []

    def start(folder: Path) -> str:
        servers.append(FileServer(folder))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


def tone(
    path: Path, seconds: float = 3.0, hertz: float = 440.0, rate: int = 22050, level: float = 0.3
) -> Path:
    """A short sound with harmonics and a little noise, which tells files apart."""
    random = np.random.default_rng(round(hertz * 1000))
    time = np.arange(round(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * hertz * n * time) / n for n in (1, 2, 3, 5)) * level / 2
    soundfile.write(path, sound + random.normal(0, 0.005, time.size), rate)
    return path


def job(name: str, library: Library, *options: str, command: str = "") -> subprocess.Popen[bytes]:
    arguments = [*command.split(), "--library", library.root, *options]
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
