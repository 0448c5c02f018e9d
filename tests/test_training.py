"""Training under Ray Train: several workers, resumption, runs that are kept."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stages import job

from songray import runs
from songray.embeddings import EmbedConfig, embed, matrix
from songray.library import Library, track_key
from songray.models import MODELS
from songray.training import TrainConfig, train

SMALL = {"dense_units": 64, "latent": 16, "batch_size": 8}


def spectrograms(library: Library, count: int, first: int = 0) -> None:
    """Tracks by ten artists with patterns that can be learned, as the stages before would leave them."""
    random = np.random.default_rng(first)
    ids = [f"t:{number}" for number in range(first, first + count)]
    keys = [track_key(one, 0) for one in ids]
    shapes = random.integers(20, 120, (count, 1, 128)) + 100 * (np.arange(600)[:, None] % 32 < 4)
    cells = [np.minimum(shape, 255).astype(np.uint8).tobytes() for shape in shapes]
    tracks = library.table("tracks")
    rows = [
        {"track_key": key, "track_id": one, "crawl": 1, "artist_ids": [f"a:{number % 10}"], "genres": []}
        for number, (key, one) in enumerate(zip(keys, ids, strict=True))
    ]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), f"{first}")
    table = library.table("spectrograms", "default")
    cut = [
        {"track_key": key, "track_id": one, "mel128": cell}
        for key, one, cell in zip(keys, ids, cells, strict=True)
    ]
    table.append(pa.Table.from_pylist(cut, table.schema()), f"{first}")


@pytest.mark.usefixtures("cluster")
def test_a_baseline_needs_no_training_and_is_embedded_by_the_same_job(library: Library) -> None:
    spectrograms(library, 40)
    run = train(library, "mfcc", MODELS["mfcc"](), TrainConfig())
    assert run.name.startswith("mfcc-") and not run.metrics
    assert run.tracks["train"] + run.tracks["validation"] == 40
    assert embed(library, EmbedConfig()).done == 40
    rows = library.table("embeddings", run.name).read()
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), 40)
    assert np.allclose(np.linalg.norm(matrix(rows["embedding"]), axis=1), 1, atol=1e-5)
    spectrograms(library, 5, first=40)
    assert train(library, "mfcc", MODELS["mfcc"](), TrainConfig()) == run  # kept, though there are more
    again = embed(library, EmbedConfig())
    assert (again.before, again.done) == (40, 5)


@pytest.mark.usefixtures("cluster")
def test_other_options_under_the_same_name_are_refused(library: Library) -> None:
    spectrograms(library, 10)
    train(library, "mfcc", MODELS["mfcc"](), TrainConfig(run="mine"))
    with pytest.raises(ValueError, match=r"runs/mine was made by .*choose another name"):
        train(library, "mfcc", MODELS["mfcc"](coefficients=13), TrainConfig(run="mine"))
    with pytest.raises(ValueError, match="--run nobodys: there is no such run; there are mine"):
        runs.choose(library, "nobodys")


def test_nothing_to_learn_from_is_told(library: Library) -> None:
    with pytest.raises(ValueError, match=r"spectrograms/default has 0 tracks .*jobs/transform\.py"):
        train(library, "mfcc", MODELS["mfcc"](), TrainConfig())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_learn_together(library: Library) -> None:
    spectrograms(library, 40)
    config = MODELS["cae"](**SMALL, epochs=4)
    run = train(library, "cae", config, TrainConfig(workers=2, threads=1))
    losses = [epoch["validation_loss"] for epoch in run.curve]
    assert [epoch["epoch"] for epoch in run.curve] == [1, 2, 3, 4]
    assert losses[-1] < losses[0]
    assert 0 < run.metrics["validation_unexplained"] < run.curve[0]["validation_unexplained"] + 1e-9
    assert embed(library, EmbedConfig()).done == 40


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_from_its_last_epoch(library: Library, cluster: None) -> None:
    spectrograms(library, 40)
    options = (
        "--run",
        "killed",
        "--dense-units",
        "64",
        "--latent",
        "16",
        "--batch-size",
        "8",
        "--epochs",
        "12",
    )
    process = job("train", library, *options, command="cae")
    snapshot = Path(library.path("runs", "killed", "train"))
    deadline = time.monotonic() + 200
    while len(list(snapshot.glob("checkpoint_*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert runs.find(library, "killed") is None  # not finished
    config = MODELS["cae"](dense_units=64, latent=16, batch_size=8, epochs=12)
    resumed = train(library, "cae", config, TrainConfig(run="killed"))
    unbroken = train(library, "cae", config, TrainConfig(run="unbroken"))
    assert [epoch["epoch"] for epoch in resumed.curve] == list(range(1, 13))
    for name in ("loss", "validation_loss"):
        found, expected = ([epoch[name] for epoch in run.curve] for run in (resumed, unbroken))
        assert np.allclose(found, expected, rtol=1e-3)


@given(st.integers(2, 60), st.integers(0, 9))
def test_whitened_vectors_have_no_favourite_direction(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pooled = random.normal(size=(count, 6)) * [100, 1, 1, 1, 0.5, 0] + 7
    white = (pooled - pooled.mean(axis=0)) @ runs.whitening(pooled)
    kept = white.shape[1]
    assert 1 <= kept <= max(1, count // 4)
    assert np.allclose(white.T @ white / count, np.eye(kept), atol=1e-3)
