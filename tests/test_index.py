"""Versions of an index: what is built, appended, deleted, kept and refused, on constructed spaces."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from songray import runs
from songray.index import Index, IndexConfig, index
from songray.library import Library, track_key
from songray.models import MODELS
from songray.runs import Encoder, Run

pytestmark = pytest.mark.usefixtures("cluster")


def fill(library: Library, vectors: np.ndarray, first: int = 0) -> None:
    """Tracks `a:<n>` with given vectors, as the stages before would leave them."""
    ids = [f"a:{number}" for number in range(first, first + len(vectors))]
    keys = [track_key(one, 0) for one in ids]
    table = library.table("tracks")
    rows = [
        {
            "track_key": key,
            "track_id": one,
            "crawl": 1,
            "source": "a",
            "title": f"Björk {one[2:]}",
            "genres": [],
        }
        | {"artist_names": ["The Knife"], "artist_ids": ["x"], "location": "/private/place.mp3"}
        for key, one in zip(keys, ids, strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{first}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
    embedded = {"track_key": pa.array(keys, pa.int64()), "track_id": ids, "embedding": column}
    library.table("embeddings", "mfcc-x").append(pa.table(embedded), f"{first}")


@pytest.fixture
def indexed(library: Library) -> Library:
    """A library of 300 tracks with vectors of a run, not indexed yet."""
    model = MODELS["mfcc"](coefficients=4).build()
    run = Run(
        "mfcc-x", "mfcc", {"coefficients": 4}, {}, "default", {"train": 1, "validation": 1}, "", {}, {}, []
    )
    library.filesystem.create_dir(library.path("runs", "mfcc-x"), recursive=True)
    runs.save(library, run, Encoder(model, np.zeros(8, np.float32), np.eye(8, dtype=np.float32)))
    fill(library, units(300))
    return library


def units(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed).normal(size=(count, 8))
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def opened(library: Library) -> Index:
    return Index.open(library, index(library, IndexConfig()).manifest)


def test_a_version_is_written_only_when_something_has_changed(indexed: Library) -> None:
    first, again = index(indexed, IndexConfig()), index(indexed, IndexConfig())
    assert (first.new, again.new, again.manifest) == (True, False, first.manifest)
    fill(indexed, np.eye(8), first=300)
    grown = index(indexed, IndexConfig())
    assert (grown.new, grown.manifest.version, grown.manifest.tracks) == (True, "000002", 308)
    assert len(Index.open(indexed, first.manifest)) == 300  # the older version still answers
