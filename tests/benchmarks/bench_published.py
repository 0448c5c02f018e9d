"""What the papers tell of their trainings, on real clips, as far as a given time gets.

Environment: SONGRAY_BENCH_SECONDS of one processor a training, 60; SONGRAY_BENCH_CACHE, as of
bench_models.py.
The published schedules need a GPU: more than 2,000 batches for ALI, 78,000 for the dual-axis autoencoder,
56,000 for the CAE. Here few tracks are there to learn from, and a smaller ALI.
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

from songray.learning.loop import Limits, Metrics, learner, run_epoch, seeded, validate
from songray.learning.models.ali import ALI, ALIConfig
from songray.learning.models.base import Batch, Embedder, LearningConfig
from songray.learning.models.cae import CAEConfig
from songray.learning.models.dualaxis import DualAxisConfig
from songray.learning.windows import Clips, learning_batches, placed

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "60"))
SHOWN = 8  # rows of a curve
OFF = {"generator_turns": 1, "kernel_penalty": 0.0, "smooth_labels": False, "noise_variance": 0.0}


@dataclass(frozen=True)
class Course:
    """A training: what was measured before it, and after each of its epochs."""

    model: Embedder
    before: Metrics
    curve: list[Metrics]


@pytest.fixture(scope="module")
def music(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Embedder], tuple[Clips, Clips]]:
    """What a model eats of the tracks to learn from, and of those of other artists."""
    torch.set_num_threads(1)
    real = real_music(clips, Path(os.environ.get("SONGRAY_BENCH_CACHE", tmp_path_factory.mktemp("cache"))))
    held = np.isin([row["track_key"] for row in real.rows], real.parts.validation)
    return lambda model: (real.clips(model, ~held), real.clips(model, held))


def trained(
    config: LearningConfig,
    parts: Callable[[Embedder], tuple[Clips, Clips]],
    seconds: float = SECONDS,
    epochs: int = 10**6,
    look: Callable[[Embedder, list[Batch]], Metrics] = lambda model, batches: {},
) -> Course:
    model = seeded(config, 0)
    torch.manual_seed(0)
    train, held = parts(model)
    unseen = [placed(one, CPU) for one in learning_batches(held, model, config.batch_size, 0, 0)]
    learns = learner(model, config)
    limits = Limits(10**9, seconds, time.process_time)
    before, curve = validate(learns, unseen) | look(model, unseen), []
    while len(curve) < epochs and not (curve and curve[-1]["seconds"] > seconds):
        batches_of = batches(train, model, config.batch_size, 0, curve[-1] if curve else {})
        measured = run_epoch(learns, batches_of, limits, curve[-1] if curve else {})
        curve.append(measured | validate(learns, unseen) | look(model, unseen))
    return Course(model, before, curve)


def shown(course: Course, names: list[str]) -> list[list[float | None]]:
    """Some epochs, evenly spread, the first and the last among them."""
    places = np.unique(np.linspace(0, len(course.curve) - 1, SHOWN).round().astype(int))
    return [[course.curve[place].get(name) for name in names] for place in places]


@torch.no_grad()
def game(model: Embedder, unseen: list[Batch]) -> Metrics:
    """How an adversarial model stands, in a batch that it does not learn from: the share of pairs that the
    discriminator tells, and how various the drawn windows are, beside real ones."""
    assert isinstance(model, ALI)
    windows = unseen[0].windows
    prior = torch.randn(len(windows), model.dimension)
    model.eval()
    drawn, vectors = model.draw(prior), model.embed(windows)
    real, fake = model.discriminator(windows, vectors), model.discriminator(drawn, prior)
    model.train()
    middle = 0.5  # it says 0 of real pairs, 1 of drawn ones
    told = torch.cat([real < middle, fake > middle]).float().mean().item()
    return {"told": told, "variety": (drawn.std(0).mean() / windows.std(0).mean()).item()}


def test_ali(music: Callable[[Embedder], tuple[Clips, Clips]]) -> None:
    """The losses level off, and do not collapse; without what made them so, they do."""
    heads = ["epoch", "steps", "generator_loss", "discriminator_loss", "told", "variety"]
    for name, options in (("all tricks on", {}), ("all tricks off", OFF)):
        course = trained(ALIConfig(width=4, latent=32, batch_size=8, **options), music, look=game)
        print(f"\nALI, {name}: {course.curve[-1]['seconds']:.0f} s")
        print(tabulate(shown(course, heads), heads, tablefmt="github", floatfmt=".3f"))


def test_dual_axis(music: Callable[[Embedder], tuple[Clips, Clips]]) -> None:
    """Published: a squared error of 0.0037 on crops of 0…1, and a plain 2-D sibling that is clearly worse."""
    dual = trained(DualAxisConfig(), music)
    plain = trained(DualAxisConfig(encoder="plain"), music, np.inf, len(dual.curve))
    heads = ["epoch", "steps", "seconds", "loss", "validation_loss", "validation_unexplained"]
    for name, course in (("dual-axis", dual), ("plain", plain)):
        print(f"\n{name}: squared error {course.before['validation_loss']:.4f} before training")
        print(tabulate(shown(course, heads), heads, tablefmt="github", floatfmt=".4f"))


def test_cae(music: Callable[[Embedder], tuple[Clips, Clips]]) -> None:
    """Published: an error of 100 on the tracks held out, of 500 untrained: a fifth."""
    course = trained(CAEConfig(), music)
    rows = shown(course, ["epoch", "steps", "seconds", "loss", "validation_loss", "validation_unexplained"])
    untrained = course.before["validation_loss"]
    heads = ["epoch", "steps", "s", "error", "held out", "unexplained", "held out / untrained"]
    print(f"\nCAE: squared error {untrained:.4f} untrained")
    print(tabulate([[*row, row[4] / untrained] for row in rows], heads, tablefmt="github", floatfmt=".4f"))
