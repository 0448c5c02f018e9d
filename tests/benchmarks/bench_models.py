"""All models on the same tracks, for the same time: what does each make of music, also of artists that it
never heard?

Environment, with what the full table takes in brackets: SONGRAY_BENCH_SECONDS a model and seed, 30 (300);
SONGRAY_BENCH_SEEDS, 1 (3); SONGRAY_BENCH_SONGS of the synthetic catalogue, 0: real clips alone (1000);
SONGRAY_BENCH_MODELS, all. Training is songray's loop without Ray, on two threads.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tabulate import tabulate

from songray import runs
from songray.audio import Excerpt, read
from songray.evaluation import LABELS, cluster, nearest
from songray.latents import FactorizeConfig, factorize_entries
from songray.library import track_key
from songray.loop import Limits, Metrics, judge, learner, run_epoch, seeded
from songray.models import MODELS
from songray.models.base import Batch, Embedder, LearningConfig
from songray.segments import Clips, learning_batches, placed, pooled, scaled, split, tile
from songray.sources import synthesis
from songray.sources.synthetic import SyntheticSource, song_of
from songray.spectrograms import SPECS, Spectrogram, compute, quantise

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "30"))
SEEDS = int(os.environ.get("SONGRAY_BENCH_SEEDS", "1"))
SONGS = int(os.environ.get("SONGRAY_BENCH_SONGS", "0"))
NAMES = os.environ.get("SONGRAY_BENCH_MODELS", " ".join(MODELS)).split()
HELD_OUT = 0.3  # share of the artists
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Music:
    """Tracks with what is known of them, and their spectrograms by spec."""

    rows: list[dict[str, object]]
    planes: dict[str, list[Spectrogram]]
    factors: dict[str, np.ndarray]  # by track_id, where playlists tell them

    def clips(self, model: Embedder, chosen: np.ndarray) -> Clips:
        if model.target:
            chosen = chosen & [row["track_id"] in self.factors for row in self.rows]
        places = np.flatnonzero(chosen)
        keys = np.array([self.rows[place]["track_key"] for place in places])
        targets = [self.factors[self.rows[place]["track_id"]] for place in places] if model.target else None
        cut = [self.planes[model.spec][place] for place in places]
        return Clips(keys, cut, np.stack(targets) if targets else None)


def specs() -> list[str]:
    return sorted({seeded(MODELS[name](), 0).spec for name in NAMES})


def planes_of(sound: bytes | str, names: list[str]) -> dict[str, Spectrogram]:
    plane = compute(read(sound, Excerpt()).resampled(22050), names)
    return {name: quantise(plane[name], SPECS[name]) for name in names}


def real_music(folder: Path) -> Music:
    with (folder / "manifest.csv").open() as file:
        described = list(csv.DictReader(file))
    rows = [
        {"track_key": track_key(one["file"], 0), "track_id": one["file"], "recording": one["track_id"],
         "artist_ids": [one["artist"]], "genres": []}
        for one in described
    ]  # fmt: skip
    found = [planes_of(str(folder / one["file"]), specs()) for one in described]
    return Music(rows, {name: [planes[name] for planes in found] for name in specs()}, {})


def rendered(number: int, names: list[str]) -> dict[str, Spectrogram]:
    return planes_of(synthesis.render(0, song_of(0, number)), names)


def synthetic_music() -> Music:
    source = SyntheticSource(songs=SONGS)
    contents = [found for page in source.pages() for found in source.read(page)]
    tracks = [track for found in contents for track in found.tracks]
    rows = [
        {"track_key": track_key(one.track_id, 0), "track_id": one.track_id, "recording": one.recording,
         "artist_ids": one.artist_ids, "genres": one.genres}
        for one in tracks
    ]  # fmt: skip
    entries = [vars(entry) for found in contents for entry in found.playlist_entries]
    config = FactorizeConfig(min_playlists=1)
    ids, factors = factorize_entries(pa.Table.from_pylist(entries), config)
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(partial(rendered, names=specs()), range(SONGS), chunksize=8))
    planes = {name: [planes[name] for planes in found] for name in specs()}
    return Music(rows, planes, dict(zip(ids.tolist(), factors, strict=True)))


def fit(name: str, music: Music, is_held: np.ndarray, seed: int) -> tuple[Embedder, float, int, float | None]:
    """The model after its time, the seconds and steps that it took, and the unexplained share of held-out
    windows, where it draws them again."""
    config = MODELS[name]()
    model = seeded(config, seed)
    started = time.monotonic()
    train, held = music.clips(model, ~is_held), music.clips(model, is_held)
    if not isinstance(config, LearningConfig):
        if model.fitted:
            model.fit(scaled(torch.tensor(tile(clip, model.frames))) for clip in train.spectrograms)
        unexplained = pca_unexplained(model, held) if name == "pca" else None
        return model.eval(), time.monotonic() - started, 0, unexplained
    torch.manual_seed(seed)
    learns = learner(model, config)
    count = max(1, config.batch_size // model.views)
    per_epoch = max(1, len(train.keys) * (model.windows_per_clip // model.views) // count)
    curve: Metrics = {}
    limits = Limits(config.epochs * per_epoch, SECONDS)
    while curve.get("seconds", 0) < SECONDS and curve.get("epoch", 0) < config.epochs:
        curve = run_epoch(learns, batches(train, model, count, seed, curve), limits, curve)
    measured = judge(learns, (placed(one, CPU) for one in learning_batches(held, model, count, 0, 0)))
    return model.eval(), curve["seconds"], learns.steps, measured.get("validation_unexplained")


def batches(clips: Clips, model: Embedder, count: int, seed: int, before: Metrics) -> Iterator[Batch]:
    for batch in learning_batches(clips, model, count, seed, int(before.get("epoch", 0)) + 1):
        yield placed(batch, CPU)


def pca_unexplained(model: Embedder, held: Clips) -> float:
    windows = scaled(torch.tensor(np.concatenate([tile(clip, model.frames) for clip in held.spectrograms])))
    return ((model.draw(model.embed(windows)) - windows).square().mean() / windows.var(correction=0)).item()


def retrieval(vectors: np.ndarray, music: Music, label: str, asked: np.ndarray) -> str:
    """Precision of the nearest, and mean average precision, of queries that share a label."""
    labels = [LABELS[label](row) for row in music.rows]
    ranked = nearest(vectors, len(vectors) - 1)
    first, average = [], []
    for number in np.flatnonzero(asked):
        hits = np.array([bool(labels[number] & labels[other]) for other in ranked[number]])
        if hits.any():
            first.append(hits[0])
            average.append((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
    return f"{np.mean(first):.2f}/{np.mean(average):.2f}" if first else ""


def judged(name: str, music: Music, seed: int) -> list[object]:
    keys = ("track_key", "track_id", "artist_ids", "recording")
    table = pa.table({key: [row[key] for row in music.rows] for key in keys})
    parts = split(table, HELD_OUT, seed=1)
    held = np.isin([row["track_key"] for row in music.rows], parts.validation)
    model, seconds, steps, unexplained = fit(name, music, held, seed)
    plain = pooled(model, music.planes[model.spec])
    encoder = runs.Encoder(model, plain[~held].mean(0), runs.SCALES[model.scale](plain[~held]))
    vectors = encoder.unit(plain)
    everyone = np.ones_like(held)
    clusters = cluster(vectors, [row["genres"] for row in music.rows])
    return [
        name, seed, vectors.shape[1], sum(weights.numel() for weights in model.parameters()), round(seconds),
        steps, unexplained,
        *(retrieval(vectors, music, label, who) for label in ("recording", "artist", "genre")
          for who in (everyone, held)),
        clusters and clusters.v_measure, clusters and clusters.mutual_information,
    ]  # fmt: skip


HEADS = ["model", "seed", "dimension", "parameters", "s", "steps", "unexplained", "track", "held out",
         "artist", "held out", "genre", "held out", "V", "AMI"]  # fmt: skip


@pytest.mark.parametrize("kind", ["clips", "synthetic"])
def test_models(kind: str, clips: Path) -> None:
    if kind == "synthetic" and not SONGS:
        pytest.skip("SONGRAY_BENCH_SONGS is 0")
    torch.set_num_threads(2)
    music = real_music(clips) if kind == "clips" else synthetic_music()
    rows = []
    for name in NAMES:
        learns = isinstance(MODELS[name](), LearningConfig)
        if name == "factors" and not music.factors:
            continue  # nobody's playlists hold these
        for seed in range(SEEDS if learns or name == "random" else 1):
            rows.append(judged(name, music, seed))
            print(tabulate(rows[-1:], tablefmt="plain", floatfmt=".3f"), flush=True)
    print(
        f"\n{kind}: {len(music.rows)} tracks; {SECONDS:g} s a model; precision of the nearest / mAP, of all"
    )
    print("queries and of those whose artist was held out of training, among all tracks\n")
    print(tabulate(rows, HEADS, tablefmt="github", floatfmt=".3f"))
