"""A student of the default fusion: how near it comes to its teacher, by the number of tracks it is taught.

The music and the scores are those of bench_fusion. The artists are split into three parts: a student is
taught tracks of two of them, from random weights (the weights that the package contains have seen this
music), and scored, like its teacher, on the clips of the third part among themselves. The teacher's vectors
are reduced to 96 numbers. In brackets are intervals of 95 % over resamples of the artists.

SONGRAY_BENCH_SECONDS, 240, is the time of each training, on one processor.
"""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np
import torch
from bench_fusion import HEADS, Music, cosines, joined, members, music  # noqa: F401  # fixtures
from bench_pretrained import fastest
from tabulate import tabulate

from songray.audio.spectrograms import Spectrogram
from songray.learning.fusion import principal_directions
from songray.learning.loop import Limits, build_learner, build_model, run_epoch
from songray.learning.models.base import Embedder
from songray.learning.models.options import DistilledConfig
from songray.learning.scale import unit
from songray.learning.windows import Clips, embed_clips, learning_batches, tile, to_device, to_float
from songray.library import Vectors
from songray.pipeline import MEMBERS

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "240"))
TAUGHT = (40, 80, 160)  # tracks
PARTS, DIMENSION = 3, 96
SPEED_CLIPS = 32  # that are embedded together, as in a batch of the stage
CONFIG = DistilledConfig("teacher", dimension=DIMENSION, pretrained=False, epochs=10**6)

Music_ = list[dict[str, Spectrogram]]


def taught(spectrograms: list[Spectrogram], vectors: Vectors) -> Embedder:
    model = build_model(CONFIG, 0)
    numbers = np.arange(len(spectrograms))
    clips, learner = Clips(numbers, numbers, spectrograms, vectors), build_learner(model, CONFIG)
    metrics: dict[str, float] = {}
    started, limits = time.monotonic(), Limits(10**9, SECONDS)
    while time.monotonic() - started < SECONDS:
        epoch = int(metrics.get("epoch", 0)) + 1
        batches = learning_batches(clips, model, CONFIG.batch_size, 0, epoch)
        metrics = run_epoch(
            learner, (to_device(batch, torch.device("cpu")) for batch in batches), limits, metrics
        )
    return model.eval()


def test_students(members: dict[str, Vectors], music: Music_) -> None:  # noqa: F811
    labels, spectrograms = Music(), [clip["mel128"] for clip in music]
    whole = joined(members, dict(MEMBERS))
    teacher = unit(whole @ principal_directions(whole, DIMENSION))
    groups = np.random.default_rng(0).permutation(np.unique(labels.group))
    vectors = {count: np.zeros_like(teacher) for count in TAUGHT}
    parts = [np.isin(labels.group, groups[part::PARTS]) for part in range(PARTS)]
    for held_out in parts:
        others = np.random.default_rng(0).permutation(np.flatnonzero(~held_out))
        for count in TAUGHT:
            model = taught([spectrograms[n] for n in others[:count]], teacher[others[:count]])
            chosen = np.flatnonzero(held_out)
            vectors[count][chosen] = unit(embed_clips(model, [spectrograms[n] for n in chosen]))
    rows = [table_row("teacher", teacher, parts, labels, teacher)]
    rows += [
        table_row(f"{count} tracks", student, parts, labels, teacher) for count, student in vectors.items()
    ]
    print(f"\n{SECONDS:g} s a training\n")
    print(tabulate(rows, ["taught", *HEADS, "share of the teacher's", "cosine"], tablefmt="github"))


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


def test_speed(music: Music_) -> None:  # noqa: F811
    torch.set_num_threads(1)
    model = build_model(CONFIG, 0).eval()
    clips = [clip["mel128"] for clip in music[:SPEED_CLIPS]]
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
