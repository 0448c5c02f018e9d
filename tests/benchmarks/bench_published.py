"""The losses that papers publish of their trainings, beside those on real clips within a given time.

Environment: SONGRAY_BENCH_SECONDS of processor time for each training, 60; SONGRAY_BENCH_CACHE, as of
bench_models.py.
The published schedules need a GPU: more than 2,000 batches for ALI, 78,000 for the dual-axis autoencoder,
56,000 for the CAE. This benchmark trains on few tracks, and a smaller ALI.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_models import CPU, batches, real_music
from tabulate import tabulate

from songray.learning.loop import Limits, Metrics, build_learner, build_model, run_epoch, validate
from songray.learning.models.ali import ALI
from songray.learning.models.base import Batch, Embedder
from songray.learning.models.config import LearningConfig
from songray.learning.models.options import ALIConfig, CAEConfig, DualAxisConfig
from songray.learning.windows import Clips, learning_batches, to_device

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "60"))
CURVE_ROWS = 8  # at most, in a table
OFF = {"generator_steps": 1, "kernel_penalty": 0.0, "smooth_labels": False, "noise_variance": 0.0}


@dataclass(frozen=True)
class Training:
    """A trained model, with the metrics before training and after each epoch."""

    model: Embedder
    before: Metrics
    curve: list[Metrics]


SplitClips = Callable[[Embedder], tuple[Clips, Clips]]  # the training and the validation part


@pytest.fixture(scope="module")
def split_clips(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> SplitClips:
    """The training and the validation part of the clips, as the input of a model."""
    torch.set_num_threads(1)
    real = real_music(clips, Path(os.environ.get("SONGRAY_BENCH_CACHE", tmp_path_factory.mktemp("cache"))))
    held = np.isin([row["track_key"] for row in real.rows], real.parts.validation)
    return lambda model: (real.clips(model, ~held), real.clips(model, held))


def train(
    config: LearningConfig,
    parts: SplitClips,
    seconds: float = SECONDS,
    epochs: int = 10**6,
    more_metrics: Callable[[Embedder, list[Batch]], Metrics] = lambda model, batches: {},
) -> Training:
    model = build_model(config, 0)
    torch.manual_seed(0)
    learned, held = parts(model)
    validation = [to_device(batch, CPU) for batch in learning_batches(held, model, config.batch_size, 0, 0)]
    learner = build_learner(model, config)
    limits = Limits(10**9, seconds, time.process_time)
    before, curve = validate(learner, validation) | more_metrics(model, validation), []
    while len(curve) < epochs and not (curve and curve[-1]["seconds"] > seconds):
        previous = curve[-1] if curve else {}
        epoch = batches(learned, model, config.batch_size, 0, previous)
        metrics = run_epoch(learner, epoch, limits, previous)
        curve.append(metrics | validate(learner, validation) | more_metrics(model, validation))
    return Training(model, before, curve)


def table_rows(training: Training, names: list[str]) -> list[list[float | None]]:
    """Metrics of some epochs, evenly spread, the first and the last among them."""
    positions = np.unique(np.linspace(0, len(training.curve) - 1, CURVE_ROWS).round().astype(int))
    return [[training.curve[position].get(name) for name in names] for position in positions]


@torch.no_grad()
def balance(model: Embedder, validation: list[Batch]) -> Metrics:
    """For a batch of the validation part: the accuracy of the discriminator, and the standard deviation of
    decoded windows relative to that of real ones."""
    assert isinstance(model, ALI)
    windows = validation[0].windows
    prior = torch.randn(len(windows), model.dimension)
    model.eval()
    decoded, vectors = model.decode(prior), model.embed(windows)
    real, fake = model.discriminator(windows, vectors), model.discriminator(decoded, prior)
    model.train()
    # Its target is 0 for real pairs, and 1 for decoded ones.
    accuracy = torch.cat([real < 0.5, fake > 0.5]).float().mean().item()
    return {"accuracy": accuracy, "variety": (decoded.std(0).mean() / windows.std(0).mean()).item()}


def test_ali(split_clips: SplitClips) -> None:
    """The losses converge with the measures for convergence, and collapse without them."""
    heads = ["epoch", "steps", "generator_loss", "discriminator_loss", "accuracy", "variety"]
    for name, options in (("with all measures", {}), ("without", OFF)):
        config = ALIConfig(width=4, latent=32, batch_size=8, **options)
        training = train(config, split_clips, more_metrics=balance)
        print(f"\nALI, {name}: {training.curve[-1]['seconds']:.0f} s")
        print(tabulate(table_rows(training, heads), heads, tablefmt="github", floatfmt=".3f"))


def test_dual_axis(split_clips: SplitClips) -> None:
    """Published: a squared error of 0.0037 on crops of 0…1; that of a plain 2-D autoencoder is higher."""
    dual = train(DualAxisConfig(), split_clips)
    plain = train(DualAxisConfig(encoder="plain"), split_clips, np.inf, len(dual.curve))
    heads = ["epoch", "steps", "seconds", "loss", "validation_loss", "validation_unexplained"]
    for name, training in (("dual-axis", dual), ("plain", plain)):
        print(f"\n{name}: squared error {training.before['validation_loss']:.4f} before training")
        print(tabulate(table_rows(training, heads), heads, tablefmt="github", floatfmt=".4f"))


def test_cae(split_clips: SplitClips) -> None:
    """Published: an error of 100 on held-out tracks, a fifth of the 500 before training."""
    training = train(CAEConfig(), split_clips)
    names = ["epoch", "steps", "seconds", "loss", "validation_loss", "validation_unexplained"]
    rows = table_rows(training, names)
    untrained = training.before["validation_loss"]
    heads = ["epoch", "steps", "s", "error", "held out", "unexplained", "held out / untrained"]
    print(f"\nCAE: squared error {untrained:.4f} untrained")
    print(tabulate([[*row, row[4] / untrained] for row in rows], heads, tablefmt="github", floatfmt=".4f"))
