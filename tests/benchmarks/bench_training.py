"""Training through Ray beside a bare PyTorch loop, embedding beside a bare forward pass, and how similar the
clips of a batch are.

The loops that are compared alternate in one process, a few steps each, so that other programs slow down all
of them; printed are medians over the rounds. Environment: SONGRAY_BENCH_CLIPS (768) of 30 s;
SONGRAY_BENCH_ROUNDS (4); SONGRAY_BENCH_GPU=1 trains and embeds on a GPU, and compares bf16 and torch.compile
with single precision.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.train
import torch
from tabulate import tabulate

from songray.audio.spectrograms import SPECS
from songray.keys import track_key
from songray.learning import worker
from songray.learning.embed import embed_batch
from songray.learning.encoder import ModelEncoder
from songray.learning.feed import Feed, FeedConfig, clip_rows
from songray.learning.loop import Limits, Metrics, build_model, is_first, run_epoch
from songray.learning.models import MODELS
from songray.learning.models.base import Batch
from songray.learning.split import Split
from songray.learning.train import TrainConfig, make_job, trainer
from songray.learning.windows import Clips, learning_batches, tile, to_device, to_float
from songray.learning.worker import Job
from songray.library import Library
from songray.pipeline import MEMBERS

CLIPS = int(os.environ.get("SONGRAY_BENCH_CLIPS", "768"))
ROUNDS = int(os.environ.get("SONGRAY_BENCH_ROUNDS", "4"))
GPU = os.environ.get("SONGRAY_BENCH_GPU") == "1"
DEVICE = torch.device("cuda" if GPU else "cpu")
STEPS = 50 if GPU else 8  # in a round
FRAMES = 1292
NAMES = ("cae", "contrastive")
EMBEDDED = 32  # clips

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file

Loop = Callable[[], Metrics]  # takes STEPS steps, and returns their `seconds`


def fill(library: Library, files: list[list[np.ndarray]]) -> np.ndarray:
    """Write spectrograms as the transform stage does, in files in the order of the catalogue; their keys."""
    table = library.table("spectrograms", "default")
    keys = []
    for number, clips in enumerate(files):
        ids = [f"t:{number}-{position}" for position in range(len(clips))]
        keys += [track_key(track_id, 0) for track_id in ids]
        cells = {
            "track_key": keys[-len(ids) :],
            "track_id": ids,
            "mel128": [clip.tobytes() for clip in clips],
        }
        types = {name: table.schema().field(name).type for name in cells}
        table.append(pa.table(cells, pa.schema(types)), f"{number:05d}")
    return np.array(keys)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, Split]:
    """A library of clips of noise: the time of a step does not depend on their content."""
    library = Library.open(str(tmp_path_factory.mktemp("bench")))
    random = np.random.default_rng(0)
    clips = [random.integers(0, 255, (FRAMES, 128), np.uint8) for _ in range(CLIPS)]
    keys = np.sort(fill(library, [clips[start : start + 64] for start in range(0, CLIPS, 64)]))
    return library, Split(keys[8:], keys[:8])


def compare_loops(arguments: dict[str, Any]) -> dict[str, list[Metrics]]:
    """Worker of Ray Train: the metrics of each round of songray's loop, fed by Ray Data, and of its peers."""
    job: Job = arguments["job"]
    torch.set_num_threads(job.threads)
    loops: dict[str, Loop] = {"kept in memory": songray_loop(job)}
    if ray.train.get_context().get_world_size() == 1:
        loops["read in each pass"] = songray_loop(replace(job, keep_bytes=0))
    if GPU:
        loops["bf16"] = songray_loop(replace(job, bf16=True))
        loops["compiled"] = songray_loop(replace(job, compile=True))
    loops["bare"] = bare_loop(job)
    rounds: dict[str, list[Metrics]] = {name: [] for name in loops}
    for _ in range(ROUNDS + 1):
        for name, loop in loops.items():
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            rounds[name].append(loop())
    return {name: metrics[1:] for name, metrics in rounds.items()}  # the first round warms up


def songray_loop(job: Job) -> Loop:
    learner = worker.prepare(job)
    batches = endless(worker.feed(job, learner.model, "train"))
    return lambda: run_epoch(learner, islice(batches, STEPS), Limits(10**6), {})


def endless(feed: Feed) -> Iterator[Batch]:
    return chain.from_iterable(feed.epoch(number) for number in count(1))


def bare_loop(job: Job) -> Loop:
    """The plainest loop, on batches that are in memory already; of the workers, only the first runs it."""
    config = job.model_config
    model = build_model(config, 0).to(DEVICE)
    random = np.random.default_rng(0)
    clips = [random.integers(0, 255, (FRAMES, 128), np.uint8) for _ in range(config.batch_size)]
    batch_clips = config.batch_size // model.views
    batches = learning_batches(
        Clips(*[np.arange(len(clips))] * 2, clips), model, batch_clips, seed=0, epoch=1
    )
    in_memory = cycle([to_device(batch, DEVICE) for batch in islice(batches, 2)])
    optimizer = model.optimizer("", config.learning_rate)

    def run() -> Metrics:
        started = time.monotonic()
        for batch in islice(in_memory, STEPS if is_first() else 0):
            optimizer.zero_grad(set_to_none=True)
            with mock.patch.object(torch.distributed, "get_world_size", return_value=1):  # of this loop
                losses = model(batch)
            losses["loss"].backward()
            if model.max_gradient_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), model.max_gradient_norm)
            optimizer.step()
        if GPU:
            torch.cuda.synchronize()
        return {"seconds": time.monotonic() - started}

    return run


def run_rounds(library: Library, name: str, config: TrainConfig, parts: Split) -> dict[str, list[Metrics]]:
    """Start the workers of a training as its driver does, with compare_loops in place of its own worker."""
    job = make_job(library, f"{name}-{config.workers}", name, MODELS[name](), config, parts)
    with mock.patch.object(worker, "train_worker", compare_loops):
        ray_trainer = trainer(job, config, parts)
    rounds: dict[str, list[Metrics]] = ray_trainer.fit().return_value
    return rounds


def compare(model: str, workers: str, rounds: dict[str, list[Metrics]], peer: str) -> list[list[object]]:
    """One row for each loop but the peer."""
    rates = {name: STEPS / np.array([row["seconds"] for row in metrics]) for name, metrics in rounds.items()}
    peer_rates = rates.pop(peer)
    return [
        [model, workers, name, np.median(own), peer, np.median(peer_rates), np.median(own / peer_rates),
         np.median([row["waiting"] for row in rounds[name]])]
        for name, own in rates.items()
    ]  # fmt: skip


def test_training(cluster: None, filled: tuple[Library, Split]) -> None:
    rows = []
    library, parts = filled
    for name in NAMES:
        rounds = run_rounds(library, name, TrainConfig(gpu=GPU, threads=2), parts)
        precise = {loop: rounds[loop] for loop in rounds if loop not in ("bf16", "compiled")}
        rows += compare(name, "1 × 2 threads", precise, "bare")
        if GPU:
            others = {loop: rounds[loop] for loop in ("bf16", "compiled", "kept in memory")}
            rows += compare(name, "1 GPU", others, "kept in memory")
            continue
        rounds = run_rounds(library, name, TrainConfig(workers=2, threads=1), parts)
        rows += compare(name, "2 × 1 thread", rounds, "bare")
    heads = ["model", "workers", "loop", "steps/s", "peer", "steps/s", "ratio", "share of waiting"]
    print("\nThe peer has as many threads as one worker, and the whole batch.")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))


def noise(spec_name: str) -> list[np.ndarray]:
    """Spectrograms of 30 s."""
    spec, random = SPECS[spec_name], np.random.default_rng(0)
    shape = (1 + 30 * spec.rate // spec.hop_length, spec.bins)
    return [random.integers(0, 255, shape, np.uint8) for _ in range(EMBEDDED)]


def test_embedding() -> None:
    rows = []
    torch.set_num_threads(1)
    student = MODELS["distilled"](teacher="teacher", dimension=96)
    configs = {name: MODELS[name]() for name in (*NAMES, *MEMBERS)} | {"distilled": student}
    for name, config in configs.items():
        model = build_model(config, 0).eval().to(DEVICE)
        ones = np.ones(model.dimension, np.float32)
        encoder = ModelEncoder(model, 0 * ones, ones)
        clips = noise(model.spec)
        table = pa.table(
            {
                "track_key": np.arange(EMBEDDED),
                "track_id": [str(number) for number in range(EMBEDDED)],
                model.spec: [clip.tobytes() for clip in clips],
            }
        )
        tiles = [tile(clip, model.frames, model.hop, model.padding) for clip in clips]
        windows = to_float(torch.tensor(np.concatenate(tiles), device=DEVICE))
        own, peer = [], []
        for _ in range(ROUNDS):
            started = time.monotonic()
            embed_batch(table, encoder)
            own.append(time.monotonic() - started)
            started = time.monotonic()
            with torch.inference_mode():
                for batch in windows.split(model.batch_windows):
                    model.embed(batch)
            if GPU:
                torch.cuda.synchronize()
            peer.append(time.monotonic() - started)
        clips = [table.num_rows / np.median(seconds) for seconds in (own, peer)]
        rows.append([name, *clips, np.median(np.array(peer) / np.array(own))])
    heads = ["model", "clips/s", "bare forward pass, clips/s", "ratio"]
    print(f"\n{tabulate(rows, heads, tablefmt='github', floatfmt='.2f')}")


STYLES, ARTISTS, TRACKS = 8, 100, 10  # artists of a style, tracks of an artist: a catalogue of 8,000


def test_neighbours_in_a_batch(cluster: None, tmp_path: Path) -> None:
    """Similarity of adjacent clips in a batch, for a catalogue that lists the tracks of an artist, and the
    artists of a style, one after another."""
    total = STYLES * ARTISTS * TRACKS
    library = Library.open(str(tmp_path / "library"))
    files = np.split(np.zeros((total, 1, 128), np.uint8), range(256, total, 256))
    keys = fill(library, [list(file) for file in files])
    position = {key: number for number, key in enumerate(keys.tolist())}
    model = build_model(MODELS["cae"](dense_units=8), 0)

    def feed_order(keep_bytes: float) -> np.ndarray:
        rows = clip_rows(library, "default", model, keys, {})
        config = FeedConfig(total, batch_clips=32, seed=0, keep_bytes=keep_bytes, device=DEVICE)
        batches = islice(Feed(rows.iterator(), model, config).epoch(1), total // 32)
        return np.array([position[key] for batch in batches for key in batch.recordings.tolist()])

    orders = {
        "the catalogue": np.arange(total),
        "a random permutation": np.random.default_rng(0).permutation(total),
        "clips kept in memory": feed_order(1e10),
        "clips read in each pass": feed_order(0),
    }
    random = np.random.default_rng(0)
    levels = np.repeat(random.normal(size=STYLES), ARTISTS * TRACKS)
    levels = levels + np.repeat(random.normal(size=STYLES * ARTISTS), TRACKS) + random.normal(size=total)
    rows = []
    for name, order in orders.items():
        in_batch = np.arange(1, len(order)) % 32 > 0  # pairs within a batch
        first, second = order[:-1][in_batch], order[1:][in_batch]
        same = [(first // size == second // size).mean() for size in (TRACKS, ARTISTS * TRACKS)]
        rows.append([name, len(order), *same, np.corrcoef(levels[first], levels[second])[0, 1]])
    heads = ["order", "clips", "same artist", "same style", "correlation of neighbours"]
    print(f"\n{tabulate(rows, heads, tablefmt='github', floatfmt='.3f')}")
