"""Training under Ray Train: data-parallel workers, resumption, and runs that are kept."""

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
from conftest import job
from stored_spectrograms import store_spectrograms

from songray.errors import Conflict, InvalidOption, MissingInput, TrainingFailed
from songray.learning import runs
from songray.learning.embed import EmbedConfig, embed
from songray.learning.loop import Curve, load_curve
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, train
from songray.library import Library, matrix


def refuse() -> None:
    raise AssertionError("Ray was started")


@pytest.mark.usefixtures("cluster")
def test_a_finished_run_is_returned_without_ray(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    store_spectrograms(library, 40)
    run = train(library, "mfcc", MODELS["mfcc"](), TrainConfig())
    assert run.name.startswith("mfcc-") and not run.metrics
    assert run.tracks["train"] + run.tracks["validation"] == 40
    store_spectrograms(library, 5, first=40)
    monkeypatch.setattr("songray.learning.train.connect", refuse)
    assert train(library, "mfcc", MODELS["mfcc"](), TrainConfig()) == run


@pytest.mark.usefixtures("cluster")
def test_other_options_under_the_same_name_are_a_conflict(library: Library) -> None:
    store_spectrograms(library, 10)
    train(library, "mfcc", MODELS["mfcc"](), TrainConfig(run="named"))
    with pytest.raises(Conflict, match=r"runs/named .*choose another name"):
        train(library, "mfcc", MODELS["mfcc"](coefficients=13), TrainConfig(run="named"))


def test_a_set_without_usable_tracks_is_missing_input(library: Library) -> None:
    with pytest.raises(MissingInput, match=r"spectrograms/default has 0 usable tracks.*`songray transform`"):
        train(library, "mfcc", MODELS["mfcc"](), TrainConfig())


@pytest.mark.usefixtures("cluster")
def test_a_set_without_the_spec_of_the_model_is_missing_input(library: Library) -> None:
    store_spectrograms(library, 10)
    with pytest.raises(MissingInput, match=r"spectrograms/default has no column mel96.*--specs mel96"):
        train(library, "cae2d", MODELS["cae2d"](), TrainConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 1.0}, "--validation-share 1.0: must lie between 0 and 1"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints 0: must be at least 1"),
        ({"workers": 3, "max_workers": 2}, "--max-workers 2: must be at least --workers 3"),
        ({"max_seconds": 0.0}, "--max-seconds 0.0: must be positive"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        TrainConfig(**options)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_train_one_model_and_write_a_curve(library: Library) -> None:
    store_spectrograms(library, 40)
    config = MODELS["contrastive"](widths=(8, 16), batch_size=16, epochs=3)
    with pytest.raises(InvalidOption, match=r"--batch-size 16 cannot be shared .*: choose a multiple of 6"):
        train(library, "contrastive", config, TrainConfig(workers=3))
    options = TrainConfig(workers=2, threads=1, keep_checkpoints=2)
    run = train(library, "contrastive", config, options)
    assert [epoch["epoch"] for epoch in run.curve] == [1, 2, 3]
    worker_tracks = run.tracks["train"] // 2
    assert [epoch["steps"] for epoch in run.curve] == [worker_tracks * 4 // 4 * n for n in (1, 2, 3)]
    assert run.curve[-1]["loss"] < run.curve[0]["loss"]
    names = {"loss", "learning_rate", "gradient_norm", "windows_per_second", "waiting", "validation_loss"}
    table = pa.parquet.read_table(library.path("runs", run.name, "curve.parquet"))
    assert names <= set(table.column_names) and table.num_rows == 3
    folder = Path(library.path("runs", run.name, "tensorboard"))
    assert len(list(folder.glob("events.out.tfevents.*"))) == 3
    assert 2 <= len(list(Path(library.path("runs", run.name, "train")).glob("checkpoint_*"))) <= 3


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_training_that_diverges_in_its_first_epoch_fails(library: Library) -> None:
    store_spectrograms(library, 20)
    config = MODELS["cae"](dense_units=64, latent=16, batch_size=8, epochs=20, learning_rate=1e18)
    with pytest.raises(TrainingFailed, match=r"first epoch: the loss was not finite.*lower --learning-rate"):
        train(library, "cae", config, TrainConfig(worker_failures=0))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_model_learns_factors_from_clips_that_are_read_in_each_pass(library: Library) -> None:
    store_spectrograms(library, 40)
    config = MODELS["factors"](factors=4, dense_units=32, batch_size=8, epochs=2)
    with pytest.raises(MissingInput, match=r"factors/als has none of the tracks .*`songray factorize`"):
        train(library, "factors", config, TrainConfig())
    tracks = library.table("tracks").read(["track_key", "track_id"])[:30]
    factors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    rows = {
        "version": pa.array([1] * 30),
        "track_key": tracks["track_key"],
        "factors": pa.FixedSizeListArray.from_arrays(factors.ravel(), 4),
    }
    library.table("factors", "als").append(pa.table(rows), "1")
    run = train(library, "factors", config, TrainConfig(keep_gigabytes=0, worker_failures=0))
    assert [epoch["epoch"] for epoch in run.curve] == [1, 2]
    assert 2 <= run.curve[-1]["steps"] <= 2 * 4 * (36 // 8)
    assert "validation_cosine" in run.metrics


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_student_learns_the_vectors_of_a_sample_and_embeds_all(library: Library) -> None:
    store_spectrograms(library, 40, specs=("mel128", "mel96-16k"))
    with pytest.raises(InvalidOption, match="--teacher is empty: name a run; the finished runs are none"):
        train(library, "distilled", MODELS["distilled"](), TrainConfig())
    teacher = train(library, "mfcc", MODELS["mfcc"](coefficients=6), TrainConfig())
    config = MODELS["distilled"](teacher=teacher.name, teacher_tracks=30, batch_size=64, epochs=3)
    with pytest.raises(MissingInput, match=f"embeddings/{teacher.name} has no vectors"):
        train(library, "distilled", config, TrainConfig())
    embed(library, EmbedConfig(run=teacher.name, rows_per_file=10))
    run = train(library, "distilled", config, TrainConfig())
    assert sum(run.tracks.values()) == 30 and run.model_config["dimension"] == 12
    assert run.curve[1]["cosine"] > run.curve[0]["cosine"] and "validation_cosine" in run.metrics
    assert embed(library, EmbedConfig(run=run.name)).done == 40
    assert matrix(library.table("embeddings", run.name).read(["embedding"])["embedding"]).shape == (40, 12)


@pytest.mark.slow
def test_a_training_whose_driver_and_worker_are_killed_ends_like_an_unbroken_one(
    library: Library, cluster: None
) -> None:
    """Saved epochs are not repeated: their rows of the curve, with their seconds, stay. (Ray Train has
    registered all epochs but the last two.)"""
    store_spectrograms(library, 40)
    options = "--widths 8 16 --batch-size 16 --epochs 24 --run killed"
    process = job("train", library, *options.split(), command="contrastive")
    curve_of_driver = wait_for_epoch(library, "killed", 3, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert runs.find(library, "killed") is None  # not finished
    config = MODELS["contrastive"](widths=(8, 16), batch_size=16, epochs=24)
    with ThreadPoolExecutor(1) as thread:
        kill = thread.submit(kill_worker, library, "killed", 6)
        killed = train(library, "contrastive", config, TrainConfig(run="killed"))
        curve_of_worker = kill.result()
    unbroken = train(library, "contrastive", config, TrainConfig(run="unbroken"))
    assert [epoch["epoch"] for epoch in killed.curve] == list(range(1, 25))
    assert killed.curve[:1] == curve_of_driver[:1]
    assert killed.curve[:4] == curve_of_worker[:4]
    assert killed.curve != curve_of_worker
    for loss in ("loss", "validation_loss"):
        resumed, expected = ([epoch[loss] for epoch in run.curve] for run in (killed, unbroken))
        assert np.allclose(resumed, expected, rtol=1e-3)


def wait_for_epoch(library: Library, run: str, epoch: int, is_alive: Callable[[], bool]) -> Curve:
    """Wait until the epoch is saved; returns the curve."""
    deadline = time.monotonic() + 300
    while True:
        for folder in Path(library.path("runs", run, "train")).glob("checkpoint_*"):
            with suppress(OSError, ValueError):  # it is being written or deleted
                if len(curve := load_curve(folder)) >= epoch:
                    return curve
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.02)


def kill_worker(library: Library, run: str, epoch: int) -> Curve:
    """SIGKILL the training worker of this session's Ray once an epoch is saved; returns the curve so far."""
    curve = wait_for_epoch(library, run, epoch, lambda: True)
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if any("RayTrainWorker" in part for part in child.cmdline())]
    assert workers
    for worker in workers:
        worker.kill()
    return curve
