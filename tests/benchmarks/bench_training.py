"""Training through Ray beside a bare PyTorch loop, embedding beside a bare forward pass, and how well the
clips of a batch are mixed.

Those compared take turns in one process, a few steps each, so that both meet the same machine; what is
printed are medians over the turns. Environment: SONGRAY_BENCH_CLIPS (768) of 30 s; SONGRAY_BENCH_TURNS (4);
SONGRAY_BENCH_GPU=1 trains and embeds on a GPU, and shows bf16 and torch.compile beside single precision.
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
import torch
from tabulate import tabulate

from songray.learning import runs
from songray.learning.embed import embed_batch
from songray.learning.feed import Feed, clips_of
from songray.learning.loop import Limits, Metrics, is_first, run_epoch, seeded
from songray.learning.models import MODELS
from songray.learning.models.base import Batch
from songray.learning.train import TrainConfig, feed, prepare, trainer
from songray.learning.windows import BATCH_WINDOWS, Clips, Split, learning_batches, placed
from songray.library import Library, track_key

CLIPS = int(os.environ.get("SONGRAY_BENCH_CLIPS", "768"))
TURNS = int(os.environ.get("SONGRAY_BENCH_TURNS", "4"))
GPU = os.environ.get("SONGRAY_BENCH_GPU") == "1"
DEVICE = torch.device("cuda" if GPU else "cpu")
STEPS = 50 if GPU else 8  # of a turn
FRAMES = 1292
NAMES = ("cae", "contrastive")

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers of Ray cannot import it

Turn = Callable[[], Metrics]  # takes STEPS steps; `seconds` that they took


def fill(library: Library, files: list[list[np.ndarray]]) -> np.ndarray:
    """Spectrograms as the stage before leaves them, in files in the catalogue's order; their keys."""
    table = library.table("spectrograms", "default")
    keys = []
    for number, clips in enumerate(files):
        ids = [f"t:{number}-{place}" for place in range(len(clips))]
        keys += [track_key(one, 0) for one in ids]
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
    """A library of clips of noise: what a step costs does not depend on what is heard."""
    library = Library.open(str(tmp_path_factory.mktemp("bench")))
    random = np.random.default_rng(0)
    clips = [random.integers(0, 255, (FRAMES, 128), np.uint8) for _ in range(CLIPS)]
    keys = np.sort(fill(library, [clips[start : start + 64] for start in range(0, CLIPS, 64)]))
    return library, Split(keys[8:], keys[:8])


def turns(job: dict[str, Any]) -> dict[str, list[Metrics]]:
    """Work of a worker of Ray Train: the loop of songray, on what Ray Data feeds it, and its peers."""
    config: TrainConfig = job["config"]
    torch.set_num_threads(config.threads)
    takers: dict[str, Turn] = {"kept": songray_turn(job)}
    if config.workers == 1:
        takers["read in each pass"] = songray_turn(job | {"config": replace(config, keep_gigabytes=0)})
    if GPU:
        takers["bf16"] = songray_turn(job | {"config": replace(config, bf16=True)})
        takers["compiled"] = songray_turn(job | {"config": replace(config, compile=True)})
    takers["bare"] = bare_turn(job)
    found: dict[str, list[Metrics]] = {name: [] for name in takers}
    for _ in range(TURNS + 1):
        for name, take in takers.items():
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            found[name].append(take())
    return {name: measured[1:] for name, measured in found.items()}  # the first is to warm up


def songray_turn(job: dict[str, Any]) -> Turn:
    learns = prepare(job["model_config"], job["config"])
    batches = endless(feed(job, learns.model, "train"))
    return lambda: run_epoch(learns, islice(batches, STEPS), Limits(10**6), {})


def endless(fed: Feed) -> Iterator[Batch]:
    return chain.from_iterable(fed.epoch(number) for number in count(1))


def bare_turn(job: dict[str, Any]) -> Turn:
    """The plainest loop, on batches that lie ready in memory; of several workers, the first by itself."""
    config = job["model_config"]
    model = seeded(config, 0).to(DEVICE)
    random = np.random.default_rng(0)
    clips = [random.integers(0, 255, (FRAMES, 128), np.uint8) for _ in range(config.batch_size)]
    several = config.batch_size // model.views
    batches = learning_batches(Clips(*[np.arange(len(clips))] * 2, clips), model, several, seed=0, epoch=1)
    ready = cycle([placed(batch, DEVICE) for batch in islice(batches, 2)])
    optimizer = model.optimizer("", config.learning_rate)

    def take() -> Metrics:
        started = time.monotonic()
        for batch in islice(ready, STEPS if is_first() else 0):
            optimizer.zero_grad(set_to_none=True)
            with mock.patch.object(torch.distributed, "get_world_size", return_value=1):  # it works alone
                losses = model(batch)
            losses["loss"].backward()
            if model.max_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), model.max_norm)
            optimizer.step()
        if GPU:
            torch.cuda.synchronize()
        return {"seconds": time.monotonic() - started}

    return take


def compared(name: str, kind: str, found: dict[str, list[Metrics]], peer: str) -> list[list[object]]:
    """A line for each that is not the peer."""
    rates = {one: STEPS / np.array([turn["seconds"] for turn in several]) for one, several in found.items()}
    theirs = rates.pop(peer)
    return [
        [name, kind, one, np.median(ours), peer, np.median(theirs), np.median(ours / theirs),
         np.median([turn["waiting"] for turn in found[one]])]
        for one, ours in rates.items()
    ]  # fmt: skip


def test_training(cluster: None, filled: tuple[Library, Split]) -> None:
    rows = []
    library, parts = filled
    for name in NAMES:
        config = MODELS[name]()
        alone = TrainConfig(gpu=GPU, threads=2)
        found = trainer(library, f"{name}-1", config, alone, parts, turns).fit().return_value
        fed = {one: found[one] for one in found if one not in ("bf16", "compiled")}
        rows += compared(name, "1 × 2 threads", fed, "bare")
        if GPU:
            others = {one: found[one] for one in ("bf16", "compiled", "kept")}
            rows += compared(name, "1 GPU", others, "kept")
            continue
        pair = TrainConfig(workers=2, threads=1)
        found = trainer(library, f"{name}-2", config, pair, parts, turns).fit().return_value
        rows += compared(name, "2 × 1 thread", found, "bare")
    heads = ["model", "workers", "clips", "steps/s", "beside", "steps/s", "ratio", "share of waiting"]
    print("\nThe peer has as many threads as one worker, and the whole batch.")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))


def test_embedding(filled: tuple[Library, Split]) -> None:
    rows = []
    torch.set_num_threads(1)
    library, _ = filled
    table = library.table("spectrograms", "default").read(["track_key", "track_id", "mel128"]).slice(0, 32)
    for name in NAMES:
        model = seeded(MODELS[name](), 0).eval().to(DEVICE)
        ones = np.ones(model.dimension, np.float32)
        encoder = runs.Encoder(model, 0 * ones, ones)
        windows = torch.rand(FRAMES // model.frames * table.num_rows, model.frames, 128, device=DEVICE)
        ours, peer = [], []
        for _ in range(TURNS):
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
        clips = [table.num_rows / np.median(seconds) for seconds in (ours, peer)]
        rows.append([name, *clips, np.median(np.array(peer) / np.array(ours))])
    heads = ["model", "clips/s", "bare forward", "ratio"]
    print(f"\n{tabulate(rows, heads, tablefmt='github', floatfmt='.2f')}")


STYLES, ARTISTS, TRACKS = 8, 100, 10  # artists of a style, tracks of an artist: a catalogue of 8,000


def test_neighbours_in_a_batch(cluster: None, tmp_path: Path) -> None:
    """How alike are clips beside each other in a batch, where a catalogue lists together the tracks of an
    artist and the artists of a style?"""
    total = STYLES * ARTISTS * TRACKS
    library = Library.open(str(tmp_path / "library"))
    files = np.split(np.zeros((total, 1, 128), np.uint8), range(256, total, 256))
    keys = fill(library, [list(file) for file in files])
    place = {key: number for number, key in enumerate(keys.tolist())}
    model = seeded(MODELS["cae"](dense_units=8), 0)

    def fed(gigabytes: float) -> np.ndarray:
        rows = clips_of(library, "default", model, keys, {})
        shard = Feed(rows.iterator(), total, model, 32, 0, gigabytes * 1e9, DEVICE)
        return np.array(
            [place[key] for batch in islice(shard.epoch(1), total // 32) for key in batch.recordings.tolist()]
        )

    orders = {
        "the catalogue": np.arange(total),
        "drawn by lot": np.random.default_rng(0).permutation(total),
        "clips kept in memory": fed(10),
        "clips read in each pass": fed(0),
    }
    random = np.random.default_rng(0)
    levels = np.repeat(random.normal(size=STYLES), ARTISTS * TRACKS)
    levels = levels + np.repeat(random.normal(size=STYLES * ARTISTS), TRACKS) + random.normal(size=total)
    rows = []
    for name, order in orders.items():
        inside = np.arange(1, len(order)) % 32 > 0  # pairs within a batch
        one, two = order[:-1][inside], order[1:][inside]
        same = [(one // size == two // size).mean() for size in (TRACKS, ARTISTS * TRACKS)]
        rows.append([name, len(order), *same, np.corrcoef(levels[one], levels[two])[0, 1]])
    heads = ["order", "clips", "same artist", "same style", "correlation of neighbours"]
    print(f"\n{tabulate(rows, heads, tablefmt='github', floatfmt='.3f')}")
