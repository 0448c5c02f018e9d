"""Training through Ray beside a bare PyTorch loop, and embedding beside a bare forward pass.

Environment: SONGRAY_BENCH_CLIPS (192) of 30 s; SONGRAY_BENCH_GPU=1 trains and embeds on a GPU, and shows bf16
and torch.compile beside single precision.
"""

from __future__ import annotations

import os
import time
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch
from tabulate import tabulate

from songray import runs
from songray.embeddings import embed_batch
from songray.library import Library, track_key
from songray.loop import seeded
from songray.models import MODELS
from songray.models.base import Batch
from songray.segments import BATCH_WINDOWS, Clips, learning_batches, placed
from songray.training import TrainConfig, train

CLIPS = int(os.environ.get("SONGRAY_BENCH_CLIPS", "192"))
GPU = os.environ.get("SONGRAY_BENCH_GPU") == "1"
DEVICE = torch.device("cuda" if GPU else "cpu")
STEPS = 6
FRAMES = 1292
OPTIONS = {"cae": {}, "contrastive": {}}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library of clips of noise: what a step costs does not depend on what is heard."""
    library = Library.open(str(tmp_path_factory.mktemp("bench")))
    random = np.random.default_rng(0)
    ids = [f"t:{number}" for number in range(CLIPS)]
    tracks, table = library.table("tracks"), library.table("spectrograms", "default")
    described = [
        {"track_key": track_key(one, 0), "track_id": one, "crawl": 1, "artist_ids": [one]} for one in ids
    ]
    tracks.append(pa.Table.from_pylist(described, tracks.schema()), "0")
    for part in range(0, CLIPS, 64):
        cells = [
            {"track_key": row["track_key"], "track_id": row["track_id"],
             "mel128": random.integers(0, 255, (FRAMES, 128), np.uint8).tobytes(), "error": None}
            for row in described[part : part + 64]
        ]  # fmt: skip
        columns = {name: table.schema().field(name).type for name in cells[0]}
        table.append(pa.Table.from_pylist(cells, pa.schema(columns)), f"{part:05d}")
    return library


def bare(name: str, threads: int) -> float:
    """Steps a second of the plainest loop, on batches that lie ready in memory."""
    torch.set_num_threads(threads)
    config = MODELS[name](**OPTIONS[name])
    model = seeded(config, 0).to(DEVICE)
    random = np.random.default_rng(0)
    clips = [random.integers(0, 255, (FRAMES, 128), np.uint8) for _ in range(config.batch_size)]
    of = Clips(np.arange(len(clips)), clips)
    several = islice(learning_batches(of, model, config.batch_size // model.views, 0, 1), 2)
    ready: list[Batch] = [placed(batch, DEVICE) for batch in several]
    optimizer = model.optimizer("", config.learning_rate)
    spent = []
    for number in range(STEPS + 2):
        started = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        model(ready[number % len(ready)])["loss"].backward()
        if model.max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), model.max_norm)
        optimizer.step()
        if GPU:
            torch.cuda.synchronize()
        spent.append(time.monotonic() - started)
    return 1 / float(np.median(spent[2:]))


def under_ray(library: Library, name: str, **options: object) -> tuple[float, float]:
    """Steps a second of the second epoch, and the share of it spent waiting for batches."""
    config = MODELS[name](**OPTIONS[name], epochs=2)
    run = train(library, name, config, TrainConfig(run=f"{name}-{hash(str(options))}", gpu=GPU, **options))
    one, two = run.curve
    return (two["steps"] - one["steps"]) / (two["seconds"] - one["seconds"]), two["waiting"]


def test_training(cluster: None, filled: Library) -> None:
    rows = []
    for name in OPTIONS:
        before = bare(name, threads=2)
        ours, waiting = under_ray(filled, name, threads=2)
        after = bare(name, threads=2)
        peer = (before + after) / 2
        rows.append([name, "1 × 2 threads", ours, peer, ours / peer, waiting])
        if GPU:
            for label, options in (("bf16", {"bf16": True}), ("compiled", {"compile": True})):
                other, waiting = under_ray(filled, name, threads=2, **options)
                rows.append([name, label, other, ours, other / ours, waiting])
            continue
        single, _ = under_ray(filled, name, threads=1)
        pair, waiting = under_ray(filled, name, threads=1, workers=2)
        rows.append([name, "2 × 1 thread, beside 1 × 1", pair, single, pair / single, waiting])
    heads = ["model", "workers", "steps/s", "beside", "ratio", "share of waiting"]
    print(f"\n{tabulate(rows, heads, tablefmt='github', floatfmt='.3f')}")


def test_embedding(filled: Library) -> None:
    rows = []
    torch.set_num_threads(1)
    table = filled.table("spectrograms", "default").read(["track_key", "track_id", "mel128"]).slice(0, 32)
    for name in OPTIONS:
        model = seeded(MODELS[name](**OPTIONS[name]), 0).eval().to(DEVICE)
        ones = np.ones(model.dimension, np.float32)
        encoder = runs.Encoder(model, 0 * ones, ones)
        several = FRAMES // model.frames * table.num_rows
        windows = torch.rand(several, model.frames, 128, device=DEVICE)
        ours, peer = [], []
        for _ in range(5):  # in turn, so that both meet the same machine
            started = time.monotonic()
            embed_batch(table, encoder)
            ours.append(time.monotonic() - started)
            started = time.monotonic()
            with torch.inference_mode():
                for part in windows.split(BATCH_WINDOWS):
                    model.embed(part)
            if GPU:
                torch.cuda.synchronize()
            peer.append(time.monotonic() - started)
        clips = [table.num_rows / min(seconds) for seconds in (ours, peer)]
        rows.append([name, *clips, clips[0] / clips[1]])
    heads = ["model", "clips/s", "bare forward", "ratio"]
    print(f"\n{tabulate(rows, heads, tablefmt='github', floatfmt='.2f')}")


def test_neighbours_in_a_batch_are_as_good_as_drawn_by_lot() -> None:
    """How alike are clips beside each other, where a catalogue lists an artist's together? Correlation of
    neighbours' artists' levels: 0 by lot."""
    levels = np.repeat(np.random.default_rng(0).permutation(200), 10)  # 2,000 clips, ten an artist
    clips = [np.full((300, 128), level, np.uint8) for level in levels]
    model = seeded(MODELS["cae"](**OPTIONS["cae"]), 0)
    of = Clips(np.arange(len(clips)), clips)
    found = {"in the catalogue's order": np.corrcoef(levels[:-1], levels[1:])[0, 1]}
    batches = list(learning_batches(of, model, 32, 0, 1))
    drawn = np.concatenate([batch.windows[:, 0, 0].numpy() for batch in batches]).astype(float)
    found["as a worker draws them that keeps all"] = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    heads = ["order", "correlation of neighbours"]
    print(f"\n{tabulate(found.items(), heads, tablefmt='github', floatfmt='.3f')}")
