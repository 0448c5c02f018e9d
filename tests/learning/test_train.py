"""Training under Ray Train: several workers, resumption, runs that are kept."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import job
from hypothesis import given
from hypothesis import strategies as st

from songray.audio.transform import SPECS, from_bytes
from songray.learning import fit as fitting
from songray.learning import runs
from songray.learning.embed import EmbedConfig, embed, vectors
from songray.learning.feed import clips_of
from songray.learning.loop import Curve, load_curve
from songray.learning.models import MODELS
from songray.learning.runs import Run
from songray.learning.train import TrainConfig, declared, stop, train
from songray.learning.windows import Split, pooled
from songray.library import Library, matrix, track_key

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
    columns = ["track_key", "track_id", "mel128", "error"]
    table.append(pa.Table.from_pylist(cut, table.schema()).select(columns), f"{first}")


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


@pytest.mark.usefixtures("cluster")
def test_other_options_under_the_same_name_are_refused(library: Library) -> None:
    spectrograms(library, 10)
    train(library, "mfcc", MODELS["mfcc"](), TrainConfig(run="mine"))
    with pytest.raises(ValueError, match=r"runs/mine was made by .*choose another name"):
        train(library, "mfcc", MODELS["mfcc"](coefficients=13), TrainConfig(run="mine"))
    with pytest.raises(ValueError, match="--run nobodys: there is no such run; there are mine"):
        runs.choose(library, "nobodys")


@pytest.mark.usefixtures("cluster")
def test_files_are_read_in_an_order_drawn_by_lot_which_stays(library: Library) -> None:
    for first in range(0, 18, 3):
        spectrograms(library, 3, first)
    stored_keys = library.table("spectrograms", "default").read(["track_key"])["track_key"].to_pylist()

    def read() -> list[int]:
        rows = clips_of(library, "default", declared(MODELS["cae"]()), np.array(stored_keys), {})
        rows.context.execution_options.preserve_order = True  # as in training
        return [row["track_key"] for row in rows.iter_rows()]

    order = read()
    assert sorted(order) == sorted(stored_keys)
    assert order != stored_keys
    assert read() == order


def test_nothing_to_learn_from_is_told(library: Library) -> None:
    with pytest.raises(ValueError, match=r"spectrograms/default has 0 tracks .*jobs/transform\.py"):
        train(library, "mfcc", MODELS["mfcc"](), TrainConfig())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_learn_together_and_leave_a_curve(library: Library) -> None:
    spectrograms(library, 40)
    config = MODELS["contrastive"](widths=(8, 16), batch_size=16, epochs=3)
    with pytest.raises(ValueError, match=r"--batch-size 16 cannot be shared .*: choose a multiple of 6"):
        train(library, "contrastive", config, TrainConfig(workers=3))
    options = TrainConfig(workers=2, threads=1, pooling="mean+deviation", keep_checkpoints=2)
    run = train(library, "contrastive", config, options)
    assert [epoch["epoch"] for epoch in run.curve] == [1, 2, 3]
    train_share = run.tracks["train"] // 2
    assert [epoch["steps"] for epoch in run.curve] == [train_share * 4 // 4 * n for n in (1, 2, 3)]
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    names = {"loss", "learning_rate", "gradient_norm", "windows_per_second", "waiting", "validation_loss"}
    table = pyarrow.parquet.read_table(library.path("runs", run.name, "curve.parquet"))
    assert names <= set(table.column_names) and table.num_rows == 3
    folder = Path(library.path("runs", run.name, "tensorboard"))
    assert len(list(folder.glob("events.out.tfevents.*"))) == 3
    assert 2 <= len(list(Path(library.path("runs", run.name, "train")).glob("checkpoint_*"))) <= 3
    assert embed(library, EmbedConfig()).done == 40
    rows = library.table("embeddings", run.name).read()
    assert matrix(rows["embedding"]).shape == (40, run.tracks["train"] // 3)
    assert_the_clip_alone_gets_the_same_vector(library, run, rows)


def assert_the_clip_alone_gets_the_same_vector(library: Library, run: Run, rows: pa.Table) -> None:
    encoder = runs.load(library, run)
    (first,) = library.table("spectrograms", "default").read().slice(0, 1).to_pylist()
    alone = vectors(encoder, [from_bytes(first["mel128"], SPECS["mel128"])])[0]
    written = matrix(rows["embedding"])[rows["track_key"].to_pylist().index(first["track_key"])]
    assert np.abs(alone - written).max() < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_loss_that_is_no_number_ends_training_with_the_last_good_epoch(library: Library) -> None:
    spectrograms(library, 20)
    mad = MODELS["cae"](**SMALL, epochs=20, learning_rate=1e18)
    with pytest.raises(ValueError, match=r"first epoch: the loss was no number .*; lower --learning-rate"):
        train(library, "cae", mad, TrainConfig(worker_failures=0))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_model_hears_factors_and_clips_may_be_read_in_every_pass(library: Library) -> None:
    spectrograms(library, 40)
    config = MODELS["factors"](factors=4, dense_units=32, batch_size=8, epochs=2)
    with pytest.raises(ValueError, match=r"factors/als has none of the tracks .*jobs/factorize\.py"):
        train(library, "factors", config, TrainConfig())
    keys = library.table("tracks").read(["track_key", "track_id"])[:30]
    taste = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    made = {
        "version": pa.array([1] * 30),
        "track_key": keys["track_key"],
        "factors": pa.FixedSizeListArray.from_arrays(taste.ravel(), 4),
    }
    library.table("factors", "als").append(pa.table(made), "1")
    run = train(library, "factors", config, TrainConfig(keep_gigabytes=0, worker_failures=0))
    assert [epoch["epoch"] for epoch in run.curve] == [1, 2]
    assert 2 <= run.curve[-1]["steps"] <= 2 * 4 * (36 // 8)
    assert "validation_cosine" in run.metrics


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pca_is_fitted_by_the_same_job(library: Library) -> None:
    spectrograms(library, 20)
    run = train(library, "pca", MODELS["pca"](components=4), TrainConfig())
    model = runs.load(library, run).model
    assert torch.allclose(model.components @ model.components.T, torch.eye(4), atol=1e-4)
    assert embed(library, EmbedConfig()).done == 20


@pytest.mark.usefixtures("cluster")
def test_where_files_are_many_the_tracks_of_a_few_tell_the_scale(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (0, 10, 20):
        spectrograms(library, 10, first)
    rows = library.table("spectrograms", "default").read(["track_key", "mel128"])
    keys = rows["track_key"].to_numpy()
    learned = np.sort(keys)[::2]
    model = MODELS["mfcc"]().build()
    clips = [from_bytes(cell.as_py(), SPECS["mel128"]) for cell in rows["mel128"]]
    means = [
        pooled(model, [clips[place] for place in range(first, first + 10) if keys[place] in learned]).mean(0)
        for first in (0, 10, 20)
    ]
    monkeypatch.setattr(fitting, "SCALE_FILES", 1)
    encoder = fitting.fit_scale(library, "default", model, Split(learned, keys[:0]), "mean")
    assert sum(np.allclose(encoder.mean, mean) for mean in means) == 1


@pytest.mark.usefixtures("cluster")
def test_a_set_without_what_a_model_eats_is_told(library: Library) -> None:
    spectrograms(library, 10)
    with pytest.raises(ValueError, match=r"spectrograms/default has no mel96, .*jobs/transform\.py"):
        train(library, "cae2d", MODELS["cae2d"](), TrainConfig())


def test_training_stops_when_it_gets_no_better_or_its_time_is_over() -> None:
    model = MODELS["mfcc"]().build()
    curve = [
        {"epoch": n + 1, "validation_loss": loss, "seconds": 10.0 * n} for n, loss in enumerate([3, 2, 4, 5])
    ]
    assert not stop(model, curve[:3], TrainConfig(patience=2))
    assert stop(model, curve, TrainConfig(patience=2)) == "no better for 2 epochs"
    assert stop(model, curve, TrainConfig(max_seconds=30)) == "its 30 s were over"
    assert not stop(model, [], TrainConfig(patience=1, max_seconds=1))


@pytest.mark.slow
def test_a_training_whose_driver_or_worker_was_killed_ends_like_the_unbroken_one(
    library: Library, cluster: None
) -> None:
    """Both in one run. What was saved is not done again: its rows of the curve, seconds and all, stay. (Ray
    Train has surely noted the epochs before the last but one.)"""
    spectrograms(library, 40)
    options = "--widths 8 16 --batch-size 16 --epochs 9 --run killed"
    process = job("train", library, *options.split(), command="contrastive")
    by_the_first = wait_for_epoch(library, "killed", 3, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert runs.find(library, "killed") is None  # not finished
    config = MODELS["contrastive"](widths=(8, 16), batch_size=16, epochs=9)
    with ThreadPoolExecutor(1) as thread:
        kill = thread.submit(kill_the_worker, library, "killed", 6)
        killed = train(library, "contrastive", config, TrainConfig(run="killed"))
        by_the_second = kill.result()
    unbroken = train(library, "contrastive", config, TrainConfig(run="unbroken"))
    assert [epoch["epoch"] for epoch in killed.curve] == list(range(1, 10))
    assert killed.curve[:1] == by_the_first[:1]
    assert killed.curve[:4] == by_the_second[:4]
    assert killed.curve != by_the_second
    for loss in ("loss", "validation_loss"):
        found, expected = ([epoch[loss] for epoch in run.curve] for run in (killed, unbroken))
        assert np.allclose(found, expected, rtol=1e-3)


def wait_for_epoch(library: Library, run: str, epoch: int, is_alive: Callable[[], bool]) -> Curve:
    """Until it is saved; the curve so far."""
    deadline = time.monotonic() + 300
    while True:
        for folder in Path(library.path("runs", run, "train")).glob("checkpoint_*"):
            with suppress(OSError, ValueError):  # it is being written, or taken away
                if len(curve := load_curve(folder)) >= epoch:
                    return curve
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.02)


def kill_the_worker(library: Library, run: str, epoch: int) -> Curve:
    """SIGKILL the process that trains, of this session's Ray, once an epoch is saved; the curve till then."""
    curve = wait_for_epoch(library, run, epoch, lambda: True)
    ours = psutil.Process().children(recursive=True)
    workers = [child for child in ours if any("RayTrainWorker" in part for part in child.cmdline())]
    assert workers
    for worker in workers:
        worker.kill()
    return curve


@given(st.integers(2, 60), st.integers(0, 9))
def test_whitened_vectors_have_no_favourite_direction(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pooled = random.normal(size=(count, 6)) * [100, 1, 1, 1, 0.5, 0] + 7
    white = (pooled - pooled.mean(axis=0)) @ runs.whitening(pooled)
    kept = white.shape[1]
    assert 1 <= kept <= max(1, count // 4)
    assert np.allclose(white.T @ white / count, np.eye(kept), atol=1e-3)


def test_a_direction_in_which_clips_move_by_chance_counts_less() -> None:
    random = np.random.default_rng(0)
    pooled = random.normal(size=(300, 4))
    moves = random.normal(size=(1500, 4)) * [0.01, 1, 0.01, 0.01]
    projection = runs.steadying(pooled, moves)
    weight = np.linalg.norm(projection, axis=1)  # (numbers,)
    assert weight[1] < 0.2 * weight[[0, 2, 3]].min()
    alike = np.linalg.norm(runs.steadying(pooled, moves[:0]), axis=1)  # nothing is known of chance
    assert alike.min() > 0.8 * alike.max()
