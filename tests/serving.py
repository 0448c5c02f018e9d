"""A library of short clips with an index, and its service, for the tests and benchmarks of the service."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from conftest import free_port, tone
from starlette.exceptions import HTTPException

from songray.audio.extract import Extraction, extract_batch
from songray.catalogue.sources.base import AudioLocation
from songray.catalogue.sources.registry import SearchableSource
from songray.keys import track_key
from songray.learning import runs
from songray.learning.embed import embed_batch
from songray.learning.encoder import ModelEncoder, load, save
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.runs import Run
from songray.library import Library, Row, Vectors
from songray.search.build import IndexConfig, index
from songray.search.index import Index
from songray.service.api import create_api
from songray.service.api_keys import environment_keys
from songray.service.options import IngressConfig
from songray.service.snapshots import find_version
from songray.tables import TABLES

RUN = "mfcc-x"
CLIPS = 24


def shared_library(temporary: pytest.TempPathFactory) -> tuple[Library, Path]:
    """A library that is built once a session, which tests only read, and the folder of its clips."""
    folder = temporary.getbasetemp() / "serving"
    if folder.exists():
        return Library.open(str(folder / "library")), folder
    folder.mkdir()
    return build_library(folder), folder


def copied_library(temporary: pytest.TempPathFactory) -> tuple[Library, Path]:
    """A copy of it, to which a test may add tracks."""
    library, folder = shared_library(temporary)
    root = temporary.mktemp("copied") / "library"
    shutil.copytree(library.root, root)
    return Library.open(str(root)), folder


def build_library(folder: Path) -> Library:
    """Tracks `t:<n>`: tones, four an artist, embedded by the functions of the batch jobs, and indexed."""
    library = Library.open(str(folder / "library"))
    save_run(library, RUN, coefficients=4)
    add_tracks(library, folder, range(CLIPS))
    index(library, IndexConfig(links=8))
    return library


def save_run(library: Library, name: str, coefficients: int) -> None:
    """A run whose vectors have twice as many numbers as coefficients."""
    model, sizes = build(MODELS["mfcc"](coefficients=coefficients)), {"train": 1, "validation": 1}
    run = Run(name, "mfcc", {"coefficients": coefficients}, {}, "default", sizes, "", {}, {"loss": 0.5}, [])
    numbers = 2 * coefficients
    projection = np.random.default_rng(0).normal(size=(numbers, numbers)).astype(np.float32)
    save(library, run, ModelEncoder(model, np.full(numbers, -20, np.float32), projection))


def add_tracks(library: Library, folder: Path, numbers: range) -> None:
    """Add rows of tracks, and their embeddings by RUN."""
    ids = [f"t:{number}" for number in numbers]
    keys = [track_key(track_id, 0) for track_id in ids]
    table = library.table("tracks")
    rows = [
        {
            "track_key": key,
            "track_id": track_id,
            "crawl": 1,
            "source": "t",
            "title": f"Björk {number}",
            "artist_names": [f"The Knife {number // 4}"],
            "artist_ids": [f"k{number // 4}"],
            "genres": ["Electro" if number % 2 else "Folk"],
            "release_date": f"{1980 + number}",
            "duration_seconds": 100.0 + number,
            "location": f"https://x.test/{number}.mp3" if number % 3 else str(folder / f"{number}.flac"),
        }
        for number, key, track_id in zip(numbers, keys, ids, strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{numbers[0]}")
    add_embeddings(library, folder, numbers, RUN)


def add_embeddings(library: Library, folder: Path, numbers: range, run: str) -> None:
    vectors = embed_clips([clip(folder, number) for number in numbers], library, run)
    ids = [f"t:{number}" for number in numbers]
    keys = [track_key(track_id, 0) for track_id in ids]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    embedded = pa.table({"track_key": pa.array(keys, pa.int64()), "track_id": ids, "embedding": column})
    library.table("embeddings", run).append(embedded, f"{numbers[0]}")


def clip(folder: Path, number: int) -> bytes:
    """A tone with a pitch and noise of its own, as FLAC."""
    path = folder / f"{number}.flac"
    return (path if path.exists() else tone(path, hertz=150 + 37 * number)).read_bytes()


def embed_clips(clips: list[bytes], library: Library, run: str = RUN) -> Vectors:
    """The vectors that the batch jobs compute, (clips, dimension)."""
    names = ("track_key", "track_id", "audio", "location")
    schema = pa.schema({name: TABLES["previews"].columns[name] for name in names})
    rows = [
        {"track_key": number, "track_id": str(number), "audio": audio} for number, audio in enumerate(clips)
    ]
    spectrograms, _ = extract_batch(pa.Table.from_pylist(rows, schema), Extraction())
    embedded = embed_batch(spectrograms, load(library, runs.choose(library, run)))
    return np.array(embedded["embedding"].to_pylist(), np.float32)


class LocalService:
    """The Service of one process, without Ray Serve; without a vector for all audio it accepts none."""

    def __init__(self, library: Library, run: str = RUN, vector: Vectors | None = None) -> None:
        self.library, self.vector = library, vector
        self.index = Index.open(library, find_version(library, run))
        self.other: Index | None = None
        self.of_text: Vectors | None = None

    def snapshot(self) -> Index:
        return self.index

    def compared(self) -> Index | None:
        return self.other

    async def embed(self, audio: bytes, run: str) -> Vectors:
        if self.vector is None:
            raise HTTPException(415, "this service has no encoder")
        return self.vector

    async def embed_text(self, text: str, run: str) -> Vectors | None:
        return self.of_text

    async def locate(self, track: Row) -> AudioLocation:
        return AudioLocation(track["location"], is_public=False)

    async def first_preview(self, source: SearchableSource, words: str) -> tuple[str, bytes]:
        raise HTTPException(404, "this service has no external sources")


@contextmanager
def local_service(
    library: Library, config: IngressConfig, run: str = RUN, service: LocalService | None = None
) -> Iterator[str]:
    """The application on uvicorn, in a thread of this process; its URL."""
    service = service or LocalService(library, run)
    api = create_api(lambda: service, config, environment_keys())
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and detail of a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == response.status_code
    return response.status_code, response.json()["detail"]
