"""A library of short sounds with an index, and its service: what the tests of the service share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import uvicorn
from conftest import free_port, tone

from songray.audio.transform import TransformConfig, transform_batch
from songray.learning import runs
from songray.learning.embed import embed_batch
from songray.learning.models import MODELS
from songray.learning.runs import Encoder, Run
from songray.library import TABLES, Library, Vectors, track_key
from songray.search.build import IndexConfig, index
from songray.search.version import Index
from songray.service.app import IngressConfig, equipped
from songray.service.problems import Refusal
from songray.service.slots import manifest_of

RUN = "mfcc-x"
SOUNDS = 24


def listening(folder: Path) -> Library:
    """Tracks `t:<n>`: tones, four an artist, embedded by the functions of the batch jobs, and indexed."""
    library = Library.open(str(folder / "library"))
    model = MODELS["mfcc"](coefficients=4).build()
    sizes = {"train": 1, "validation": 1}
    run = Run(RUN, "mfcc", {"coefficients": 4}, {}, "default", sizes, "", {}, {"loss": 0.5}, [])
    library.filesystem.create_dir(library.path("runs", RUN), recursive=True)
    scale = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    runs.save(library, run, Encoder(model, np.full(8, -20, np.float32), scale))
    add(library, folder, range(SOUNDS))
    index(library, IndexConfig(links=8))
    return library


def add(library: Library, folder: Path, numbers: range) -> None:
    vectors = heard([sound(folder, number) for number in numbers], library)
    ids = [f"t:{number}" for number in numbers]
    keys = [track_key(one, 0) for one in ids]
    table = library.table("tracks")
    rows = [
        {
            "track_key": key,
            "track_id": one,
            "crawl": 1,
            "source": "t",
            "title": f"Björk {number}",
            "artist_names": [f"The Knife {number // 4}"],
            "artist_ids": [f"k{number // 4}"],
            "genres": ["Electro" if number % 2 else "Folk"],
            "release_date": f"{1980 + number}",
            "duration_seconds": 100.0 + number,
            "location": f"https://x.test/{number}.mp3" if number % 3 else "/private/place.mp3",
        }
        for number, key, one in zip(numbers, keys, ids, strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{numbers[0]}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    embedded = pa.table({"track_key": pa.array(keys, pa.int64()), "track_id": ids, "embedding": column})
    library.table("embeddings", RUN).append(embedded, f"{numbers[0]}")


def sound(folder: Path, number: int) -> bytes:
    """A clip of its own pitch and noise, as FLAC."""
    path = folder / f"{number}.flac"
    return (path if path.exists() else tone(path, hertz=150 + 37 * number)).read_bytes()


def heard(sounds: list[bytes], library: Library) -> Vectors:
    """The vectors that the batch jobs compute, (sounds, dimension)."""
    names = ("track_key", "track_id", "audio", "location")
    schema = pa.schema({name: TABLES["previews"].columns[name] for name in names})
    rows = [{"track_key": n, "track_id": str(n), "audio": one} for n, one in enumerate(sounds)]
    spectrograms, _ = transform_batch(pa.Table.from_pylist(rows, schema), TransformConfig())
    found = embed_batch(spectrograms, runs.load(library, runs.choose(library, RUN)))
    return np.array(found["embedding"].to_pylist(), np.float32)


class Local:
    """The service of one process, without Ray Serve around it: it hears nothing."""

    def __init__(self, library: Library, run: str = RUN) -> None:
        self.library = library
        self.index = Index.open(library, manifest_of(library, run))

    def live(self) -> Index:
        return self.index

    async def embed(self, audio: bytes) -> Vectors:
        raise Refusal(415, "nobody listens here")

    async def first(self, source: str, words: str) -> tuple[str, bytes]:
        raise Refusal(404, "nobody searches here")


@contextmanager
def answering(library: Library, config: IngressConfig) -> Iterator[str]:
    """The application on uvicorn, in a thread of this process; its URL."""
    service = Local(library)
    api = equipped(lambda: service, config)
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
