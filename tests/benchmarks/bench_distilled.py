"""A student of the default fusion: how near it comes to its teacher, by the number of tracks it is taught.

The music and the scores are those of bench_fusion. The artists are split into three parts: a student is
taught music of two of them, and scored, like its teacher, on the clips of the third part among themselves.
Its layers start from those of musicnn-msd (the weights that the package contains have learned this music),
and learn what both musicnn networks make of windows of the whole pieces: stretches of 30 s, as they are, and
once more at another speed, loudness and tone, a third of them mixed with another piece of their part. Then
the student learns the teacher's vectors of some of these stretches, as `songray train distilled` does. The
teacher's vectors are reduced to 96 numbers. In brackets are intervals of 95 % over resamples of the artists.

SONGRAY_BENCH_PIECES is the folder of the pieces: see bench_excerpts. SONGRAY_BENCH_SECONDS, 120, is the time
of each training of a student, on one processor; its layers learn for 7 times as long. SONGRAY_BENCH_WEIGHTS
is a file to which layers are written that have learned all pieces, as distilled.safetensors has them.
"""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soxr
import torch
from bench_excerpts import FOLDER
from bench_fusion import HEADS, Music, cosines, joined, members, music  # noqa: F401  # fixtures
from bench_pretrained import fastest, manifest
from scipy.signal import butter, lfilter
from tabulate import tabulate
from torch import nn

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import SPECS, Spectrogram, compute, quantise
from songray.learning.encoder import ModelEncoder, fit_encoder
from songray.learning.fusion import Fusion, principal_directions
from songray.learning.loop import Limits, build_learner, build_model, run_epoch
from songray.learning.models import MODELS
from songray.learning.models.contrastive import warm_up_and_decay
from songray.learning.models.distilled import Distilled
from songray.learning.models.musicnn.coarse import FEATURES
from songray.learning.models.options import DistilledConfig
from songray.learning.scale import unit
from songray.learning.windows import (
    Clips,
    embed_clips,
    embed_windows,
    jackknife_clips,
    learning_batches,
    tile,
    to_device,
    to_float,
)
from songray.library import Vectors
from songray.pipeline import MEMBERS

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "120"))
LAYERS_SECONDS = 7 * SECONDS
WEIGHTS = os.environ.get("SONGRAY_BENCH_WEIGHTS", "")
TAUGHT = (40, 160, 10**9)  # stretches; the last one: all
PARTS, DIMENSION = 3, 96
STRETCH, MOST_STRETCHES = 30.0, (8, 6)  # s; of a piece, as it is and changed
SPEED_CLIPS = 32  # that are embedded together, as in a batch of the stage
BATCH, RATE = 64, 1e-3  # windows in a step of the layers, and their peak learning rate
NETWORKS = ("musicnn-msd", "musicnn-mtt")

Music_ = list[dict[str, Spectrogram]]
Sounds = dict[str, np.ndarray]  # samples at the rate of each spec


@dataclass(frozen=True)
class Stretch:
    part: int  # of its artist
    spectrogram: Spectrogram  # mel96-16k
    windows: dict[str, Vectors]  # of each member, (windows, dimension)


def config(**options: Any) -> DistilledConfig:
    return DistilledConfig("teacher", dimension=DIMENSION, epochs=10**6, **options)


def parts_of(labels: Music) -> list[np.ndarray]:
    """Which clips are of the artists of each part."""
    groups = np.random.default_rng(0).permutation(np.unique(labels.group))
    return [np.isin(labels.group, groups[part::PARTS]) for part in range(PARTS)]


def samples(path: str, start: float, speed: float = 1.0) -> Sounds:
    """A stretch of a piece, its pitch and tempo changed by `speed`."""
    recording = decode(path, Excerpt(1200.0, "middle"))
    first, last = (round(seconds * recording.rate) for seconds in (start, start + STRETCH * speed))
    cut = recording.samples[first:last].astype(np.float32)
    return {
        name: soxr.resample(cut, recording.rate, SPECS[name].rate / speed) for name in ("mel128", "mel96-16k")
    }


def seconds_of(path: str) -> float:
    recording = decode(path, Excerpt(1200.0, "middle"))
    return len(recording.samples) / recording.rate


def changed(path: str, others: list[str], random: np.random.Generator) -> Sounds:
    """A stretch at another speed, loudness and tone, in a third of the cases mixed with another piece."""
    speed = 2 ** random.uniform(-1 / 3, 1 / 3)
    start = random.uniform(0, max(0.0, seconds_of(path) - STRETCH * speed))
    sounds = samples(path, start, speed)
    if random.random() < 1 / 3 and others:
        other = others[random.integers(len(others))]
        added = samples(other, random.uniform(0, max(0.0, seconds_of(other) - STRETCH)))
        share = 10 ** (random.uniform(-12, 0) / 20)
        for name, sound in sounds.items():
            length = min(len(sound), len(added[name]))
            sounds[name] = sound[:length] + share * added[name][:length]
    gain, high = 10 ** (random.uniform(-6, 3) / 20), 10 ** (random.uniform(-6, 6) / 20)
    corner = math.exp(random.uniform(math.log(200), math.log(3000)))  # Hz, above which the tone is changed
    for name, sound in sounds.items():
        low = lfilter(*butter(1, corner / (SPECS[name].rate / 2)), sound)
        sounds[name] = np.clip(gain * (low + high * (sound - low)), -1, 1).astype(np.float32)
    return sounds


def stretches(path: str, others: list[str], part: int) -> list[Stretch]:
    """Worker: the stretches of a piece, as they are and changed, and what the members make of them."""
    torch.set_num_threads(1)
    models = {name: build_model(MODELS[name](), 0).eval() for name in MEMBERS}
    seconds, random = seconds_of(path), np.random.default_rng(len(path))
    plain, altered = (max(1, min(most, round(seconds / STRETCH))) for most in MOST_STRETCHES)
    starts = [max(0.0, seconds - STRETCH) * (number + 0.5) / plain for number in range(plain)]
    sounds = [samples(path, start) for start in starts]
    sounds += [changed(path, others, random) for _ in range(altered)]
    taught = []
    for sound in sounds:
        planes = {name: quantise(compute(sound[name], [name])[name], SPECS[name]) for name in sound}
        windows = {
            name: embed_windows(model, [planes[model.spec]])[0].numpy() for name, model in models.items()
        }
        taught.append(Stretch(part, planes["mel96-16k"], windows))
    return taught


@pytest.fixture(scope="module")
def lessons() -> list[Stretch]:
    if not FOLDER.is_dir():
        pytest.skip(f"no packages at {FOLDER}: set SONGRAY_BENCH_PIECES")
    parts = np.stack(parts_of(Music())).argmax(axis=0)
    paths = [str(FOLDER / row["package"] / row["source"]) for row in manifest()]
    of_part = dict(zip(paths, parts.tolist(), strict=True))
    with ProcessPoolExecutor(2) as pool:
        tasks = [
            pool.submit(stretches, path, [p for p in of_part if of_part[p] == part and p != path], part)
            for path, part in of_part.items()
        ]
        return [stretch for task in tasks for stretch in task.result()]


class Heads(nn.Module):
    """What the layers' features give of a window: the vectors of both networks."""

    def __init__(self) -> None:
        super().__init__()
        whole = build_model(MODELS["musicnn-msd"](), 0)
        self.pooled, self.dense = whole.pooled, whole.dense
        self.other = nn.Linear(FEATURES, whole.dimension)

    def forward(self, model: Distilled, windows: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.coarse(windows)
        features = features.float()
        first = self.dense(self.pooled(features) @ self.dense.signed_kernel().T)
        return [first, self.other(model.head[0](features))]


def teach_layers(model: Distilled, taught: list[Stretch]) -> None:
    """Both networks' vectors of all windows, by the squared error, those of the second one by half of it."""
    windows = np.concatenate([tile(s.spectrogram, model.frames) for s in taught])
    targets = [torch.tensor(np.concatenate([s.windows[name] for s in taught])) for name in NETWORKS]
    means = [targets[0].new_zeros(()), targets[1].mean(0)]
    scales = [(target - target.mean(0)).norm(dim=1).mean() / target.shape[1] ** 0.5 for target in targets]
    heads = Heads()
    weights = [*model.coarse.parameters(), *model.head[0].parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    random, started = np.random.default_rng(0), time.monotonic()
    while (progress := (time.monotonic() - started) / LAYERS_SECONDS) < 1:
        optimizer.param_groups[0]["lr"] = RATE * warm_up_and_decay(progress)
        chosen = random.integers(0, len(windows), BATCH)
        batch = to_float(torch.tensor(windows[chosen]))
        given = heads(model, batch + 0.01 * torch.randn_like(batch))
        errors = [
            (((vectors + mean - target[chosen]) / scale) ** 2).mean()
            for vectors, mean, target, scale in zip(given, means, targets, scales, strict=True)
        ]
        optimizer.zero_grad()
        (errors[0] + errors[1] / 2).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def layers(taught: list[Stretch]) -> dict[str, torch.Tensor]:
    model = build_model(config(pretrained=False), 0)
    assert isinstance(model, Distilled)
    teach_layers(model.train(), taught)
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.1")}


def student(state: dict[str, torch.Tensor], taught: list[Stretch], vectors: Vectors) -> Distilled:
    options = config()
    model = build_model(options, 0)
    model.load_state_dict(state, strict=False)
    numbers = np.arange(len(taught))
    clips = Clips(numbers, numbers, [stretch.spectrogram for stretch in taught], vectors)
    learner, metrics = build_learner(model, options), dict[str, float]()
    started, limits = time.monotonic(), Limits(10**9, SECONDS)
    while time.monotonic() - started < SECONDS:
        epoch = int(metrics.get("epoch", 0)) + 1
        batches = learning_batches(clips, model, options.batch_size // model.views, 0, epoch)
        metrics = run_epoch(
            learner, (to_device(batch, torch.device("cpu")) for batch in batches), limits, metrics
        )
    assert isinstance(model, Distilled)
    return model.eval()


def test_students(members: dict[str, Vectors], music: Music_, lessons: list[Stretch]) -> None:  # noqa: F811
    torch.set_num_threads(1)
    labels = Music()
    whole = joined(members, dict(MEMBERS))
    directions = principal_directions(whole, DIMENSION)
    teacher, encoders = unit(whole @ directions), [fitted(name, music) for name in MEMBERS]
    weights = Fusion(np.array(list(MEMBERS.values()), np.float32), directions)
    targets = weights.join(
        [e.normalise(np.stack([s.windows[name].mean(0) for s in lessons])) for name, e in encoders]
    )
    vectors = {count: np.zeros_like(teacher) for count in TAUGHT}
    parts = parts_of(labels)
    for part, held_out in enumerate(parts):
        others = np.random.default_rng(0).permutation([n for n, s in enumerate(lessons) if s.part != part])
        state = layers([lessons[n] for n in others])
        for count in TAUGHT:
            chosen = others[:count]
            model = student(state, [lessons[n] for n in chosen], targets[chosen])
            clips = np.flatnonzero(held_out)
            vectors[count][clips] = unit(embed_clips(model, [music[n][model.spec] for n in clips]))
    names = [str(count) if count < len(lessons) else "all, about 800" for count in TAUGHT]
    rows = [table_row("teacher", teacher, parts, labels, teacher)]
    rows += [
        table_row(name, vectors[count], parts, labels, teacher)
        for name, count in zip(names, TAUGHT, strict=True)
    ]
    print(f"\n{SECONDS:g} s a training, {LAYERS_SECONDS:g} s of its layers\n")
    print(tabulate(rows, ["stretches taught", *HEADS, "share of the teacher's", "cosine"], tablefmt="github"))


def fitted(name: str, music: Music_) -> tuple[str, ModelEncoder]:  # noqa: F811
    model = build_model(MODELS[name](), 0).eval()
    return name, fit_encoder(model, jackknife_clips(model, [clip[model.spec] for clip in music]))


def table_row(
    name: str, vectors: Vectors, parts: list[np.ndarray], labels: Music, teacher: Vectors
) -> list[str]:
    scores = [np.full(len(vectors), np.nan) for _ in HEADS]
    reference = [np.full(len(vectors), np.nan) for _ in HEADS]
    for part in map(np.flatnonzero, parts):
        for values, scored in ((scores, vectors), (reference, teacher)):
            for column, result in zip(values, labels.score(cosines(scored), part), strict=True):
                column[part] = result
    shares = [np.nanmean(a) / np.nanmean(b) for a, b in zip(scores, reference, strict=True)]
    cosine = (vectors * teacher).sum(axis=1).mean()
    text = " / ".join(f"{share:.2f}" for share in shares)
    return [name, *map(labels.interval, scores), text, f"{cosine:.3f}"]


@pytest.mark.skipif(not WEIGHTS, reason="SONGRAY_BENCH_WEIGHTS names no file")
def test_weights(lessons: list[Stretch]) -> None:
    torch.set_num_threads(1)
    safetensors.torch.save_file(layers(lessons), WEIGHTS)


def test_speed(music: Music_) -> None:  # noqa: F811
    torch.set_num_threads(1)
    model = build_model(config(), 0).eval()
    clips = [clip[model.spec] for clip in music[:SPEED_CLIPS]]
    windows = np.concatenate([tile(clip, model.frames, model.hop, model.padding) for clip in clips])
    batches = to_float(torch.tensor(windows)).split(model.batch_windows)

    def bare() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model.embed(batch) for batch in batches]

    ours, forward = fastest(partial(embed_clips, model, clips)), fastest(bare)
    rows = [["distilled", SPEED_CLIPS / ours, SPEED_CLIPS / forward, forward / ours]]
    print(
        "\n"
        + tabulate(rows, ["clips/s of one processor", "embed_clips", "forward pass", "share"], floatfmt=".2f")
    )
