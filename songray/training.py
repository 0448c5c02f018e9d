"""Reads spectrograms and tracks, writes a run: a model that learned, data-parallel, under Ray Train."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from torch import nn

from songray import runs
from songray.library import Keys, Library, Table, newest_revisions, write_parquet
from songray.models.base import Embedder, LearningConfig, ModelConfig
from songray.runs import Encoder, Run, Vectors
from songray.segments import Split, pooled, scaled, split, tile
from songray.spectrograms import SPECS, stored
from songray.stages import dataset

FITTED_TRACKS = 1000  # whose vectors tell the scale
TYPICAL_TRACK_BYTES = 1300 * 128  # of a 30-s clip
SECONDS_BETWEEN_LINES = 20.0
SHUFFLED_WINDOWS = 4096  # kept by each worker to draw batches from

Weights = dict[str, torch.Tensor]
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class TrainConfig:
    run: str = ""
    """Name of the run; by default the model and a hash of all that shapes it."""
    set: str = "default"
    """Set of spectrograms to learn from."""
    validation_share: float = 0.1
    """Share of the artists that are held out, to judge by."""
    seed: int = 0
    """Of the split, the weights and the order of the data."""
    max_seconds: float | None = None
    """Stop after so many seconds of training, however many epochs that makes."""
    workers: int = 1
    """Data-parallel workers, which share each batch."""
    threads: int = 2
    """Threads of a worker on CPU."""
    gpu: bool = False
    """Give each worker a GPU."""
    worker_failures: int = 3
    """Times that training goes on from its last epoch after a worker died."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: must lie between 0 and 1")
        for name in ("workers", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds is {self.max_seconds}: must be above 0")

    @property
    def shaping(self) -> dict[str, Any]:
        """What the result depends on; how fast it comes is another matter."""
        names = ("set", "validation_share", "seed", "max_seconds", "workers")
        return {name: getattr(self, name) for name in names}


def train(library: Library, model: str, model_config: ModelConfig, config: TrainConfig) -> Run:
    """Train a model, or go on with a training that was cut off; a finished run stays as it is."""
    options = dataclasses.asdict(model_config)  # type: ignore[call-overload]
    shaping = {"model": model, "model_config": options, "config": config.shaping}
    name = config.run or runs.default_name(model, shaping)
    library.table("runs", name).claim(shaping)
    if (finished := runs.find(library, name)) is not None:
        return finished
    parts = hold_out(library, name, config)
    weights: Weights | None = None
    curve: Curve = []
    if isinstance(model_config, LearningConfig):
        weights, curve = fit(library, name, model_config, config, parts)
    encoder = fit_scale(library, seeded(model_config, config.seed, weights), config, parts)
    run = Run(
        name=name,
        model=model,
        model_config=options,
        config=config.shaping,
        set=config.set,
        tracks={"train": parts.train.size, "validation": parts.validation.size},
        data=hashlib.sha256(parts.train.tobytes() + parts.validation.tobytes()).hexdigest(),
        made_with=runs.made_with(),
        metrics=min(curve, key=lambda epoch: epoch["validation_loss"], default={}),
        curve=curve,
    )
    runs.save(library, run, encoder)
    return run


def hold_out(library: Library, name: str, config: TrainConfig) -> Split:
    """The run's split: drawn once, so that a training that goes on sees the data it began with."""
    path = library.path("runs", name, "split.parquet")
    if library.filesystem.get_file_info(path).is_file:
        table = pa.parquet.read_table(path, filesystem=library.filesystem)
        keys, held = table["track_key"].to_numpy(), table["held_out"].to_numpy()
        return Split(keys[~held], keys[held])
    spectrograms = library.table("spectrograms", config.set).read(["track_key", "error"])
    good = spectrograms.filter(spectrograms["error"].is_null())
    keys = newest_revisions(np.unique(good["track_key"].to_numpy()))
    if keys.size < 2:
        raise ValueError(
            f"spectrograms/{config.set} has {keys.size} tracks that can be used, and two are the least: "
            "run jobs/transform.py first"
        )
    tracks = library.table("tracks").newest(["track_key", "track_id", "artist_ids", "recording"])
    known = tracks.filter(pa.compute.is_in(tracks["track_key"], pa.array(keys)))
    parts = split(known, config.validation_share, config.seed)
    keys = np.concatenate([parts.train, parts.validation])
    held = np.repeat([False, True], [parts.train.size, parts.validation.size])
    write_parquet(library.filesystem, path, pa.table({"track_key": keys, "held_out": held}))
    return parts


def fit(
    library: Library, name: str, model_config: LearningConfig, config: TrainConfig, parts: Split
) -> tuple[Weights, Curve]:
    """Train under Ray Train, from its last checkpoint where there is one; the best weights, the curve."""
    spectrograms = library.table("spectrograms", config.set)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"model_config": model_config, "config": config},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.gpu),
        run_config=RunConfig(
            name="train",
            storage_path=library.path("runs", name),
            storage_filesystem=library.filesystem,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=config.worker_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="validation_loss", checkpoint_score_order="min"
            ),
        ),
        datasets={
            "train": windows(spectrograms, parts.train, model_config),
            "validation": windows(spectrograms, parts.validation, model_config),
        },
        dataset_config=ray.train.DataConfig(execution_options=_in_order()),
    )
    result = trainer.fit()
    best = min(result.best_checkpoints, key=lambda pair: pair[1]["validation_loss"])[0]
    return load_state(best)["model"], load_state(result.checkpoint)["curve"]


def _in_order() -> ray.data.ExecutionOptions:
    """Blocks keep the order of the files, so that a seed gives the same batches again."""
    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


def windows(spectrograms: Table, keys: Keys, model_config: ModelConfig) -> ray.data.Dataset:
    """Dataset of the windows that a model asks for, of some tracks."""
    with torch.device("meta"):  # for its attributes alone
        model = model_config.build()
    files = spectrograms.files()  # a block each, so that the order does not depend on the cluster's size
    rows = dataset(spectrograms, ["track_key", model.spec], files, blocks=len(files))
    batch = partial(windows_batch, keys=ray.put(keys), spec=model.spec, frames=model.frames)
    cut = rows.map_batches(batch, batch_format="pyarrow")
    fits = keys.size * TYPICAL_TRACK_BYTES < ray.cluster_resources()["object_store_memory"] / 4
    return cut.materialize() if fits else cut  # else it is read again in every epoch


def windows_batch(rows: pa.Table, keys: ray.ObjectRef, spec: str, frames: int | None) -> dict[str, Any]:
    """Rows of spectrograms → the windows of those that are wanted, (windows, frames, bins)."""
    wanted = _wanted(rows, keys)
    tiles = [tile(stored(cell.as_py(), SPECS[spec]), frames) for cell in wanted[spec]]
    empty = np.empty((0, frames or 0, SPECS[spec].n_mels), np.uint8)
    return {"window": np.concatenate([empty, *tiles])}


def _wanted(rows: pa.Table, keys: ray.ObjectRef) -> pa.Table:
    return rows.filter(pa.compute.is_in(rows["track_key"], pa.array(ray.get(keys))))


def train_worker(job: dict[str, Any]) -> None:
    """What each worker of Ray Train does: every epoch from the last checkpoint on."""
    logging.getLogger().setLevel(logging.WARNING)
    model_config, config = job["model_config"], job["config"]
    torch.set_num_threads(config.threads)
    player = seeded(model_config, config.seed)
    checkpoint = ray.train.get_checkpoint()
    state = load_state(checkpoint) if checkpoint else None
    if state:
        player.load_state_dict(state["model"])
    model = ray.train.torch.prepare_model(player)  # moves it to the device, where Adam keeps its state
    optimizer = torch.optim.Adam(model.parameters(), lr=model_config.learning_rate)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    curve: Curve = state["curve"] if state else []
    while len(curve) < model_config.epochs and (left := seconds_left(curve, config)) > 0:
        epoch = len(curve) + 1
        batches = partial(_batches, model_config.batch_size, config, epoch)
        curve.append(run_epoch(model, optimizer, batches, left, curve))
        _report(player, optimizer, curve)


def seconds_left(curve: Curve, config: TrainConfig) -> float:
    spent = curve[-1]["seconds"] if curve else 0.0
    return (config.max_seconds or float("inf")) - spent


def _batches(batch_size: int, config: TrainConfig, epoch: int, part: str) -> Iterable[torch.Tensor]:
    """This worker's share of a part's windows, uint8; those to train on in an order of the epoch's own."""
    shuffled: dict[str, Any] = {}
    if part == "train":
        shuffled = {"local_shuffle_buffer_size": SHUFFLED_WINDOWS, "local_shuffle_seed": config.seed + epoch}
    shard = ray.train.get_dataset_shard(part)
    device = ray.train.torch.get_device()
    share = max(1, batch_size // config.workers)
    for batch in shard.iter_torch_batches(batch_size=share, device=device, **shuffled):
        yield batch["window"]


def _report(player: Embedder, optimizer: torch.optim.Optimizer, curve: Curve) -> None:
    """Tell Ray Train of the epoch; the first worker adds the state from which it can go on."""
    context = ray.train.get_context()
    if context.get_world_rank() > 0:
        ray.train.report(curve[-1])
        return
    print(progress(curve[-1]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": player.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve}
        torch.save(state, Path(folder, "state.pt"))
        ray.train.report(curve[-1], Checkpoint.from_directory(folder))


def progress(epoch: dict[str, float]) -> str:
    return (
        f"epoch {epoch['epoch']}: {epoch['steps']:.0f} steps, {epoch['seconds']:.0f} s, "
        f"{epoch['windows_per_second']:.0f} windows/s, loss {epoch['loss']:.5f}, "
        f"held out {epoch['validation_loss']:.5f}"
    )


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Model, optimizer and curve; tensors and numbers alone are read, never code."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(Path(folder, "state.pt"), map_location="cpu", weights_only=True)
    return state


def seeded(model_config: ModelConfig, seed: int, weights: Weights | None = None) -> Embedder:
    """The model with weights drawn under a seed, or with those given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_config.build()
    if weights is not None:
        model.load_state_dict(weights)
    return model


def run_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[str], Iterable[torch.Tensor]],
    seconds: float,
    curve: Curve,
) -> dict[str, float]:
    """Train on the part `train` for at most so many seconds, then judge by the part `validation`."""
    started = told = time.monotonic()
    before = curve[-1] if curve else {"seconds": 0.0, "steps": 0.0}
    learned, steps = Totals(), 0
    for windows in batches("train"):
        learned.add(windows, step(model, optimizer, windows))
        steps += 1
        if time.monotonic() - told > SECONDS_BETWEEN_LINES and is_first():
            told = time.monotonic()
            print(f"epoch {len(curve) + 1}: step {steps}, loss {learned.here('loss'):.5f}", flush=True)
        if anyone(time.monotonic() - started > seconds):
            break
    spent = time.monotonic() - started
    judged = Totals()
    model.eval()
    with torch.inference_mode():
        for windows in batches("validation"):
            judged.add(windows, model(scaled(windows)))
    model.train()
    trained, validated = learned.means(), judged.means()
    return {
        "epoch": len(curve) + 1,
        "steps": before["steps"] + steps,
        "seconds": before["seconds"] + spent,
        "windows_per_second": trained.pop("windows") / spent,
        **trained,
        **{f"validation_{name}": value for name, value in validated.items()},
    }


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, windows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """One step of the optimizer on some windows, uint8 (batch, frames, bins); needs no Ray."""
    optimizer.zero_grad(set_to_none=True)
    losses: dict[str, torch.Tensor] = model(scaled(windows))
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return losses


class Totals:
    """Sums over windows, from which the means over all workers come."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {"windows": 0.0, "input": 0.0, "input_squared": 0.0}

    def add(self, windows: torch.Tensor, losses: dict[str, torch.Tensor]) -> None:
        values = scaled(windows)
        self.sums["windows"] += len(windows)
        self.sums["input"] += values.mean().item() * len(windows)
        self.sums["input_squared"] += values.square().mean().item() * len(windows)
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss.item() * len(windows)

    def here(self, name: str) -> float:
        """The mean over this worker's windows so far."""
        return self.sums[name] / max(self.sums["windows"], 1)

    def means(self) -> dict[str, float]:
        """Means a window; where the model gives its squared error, also that as a share of the
        variance of the input (`unexplained`): models on different scales compare by it."""
        sums = dict(zip(self.sums, summed(list(self.sums.values())), strict=True))
        windows = sums.pop("windows")
        means = {name: value / max(windows, 1) for name, value in sums.items()}
        variance = means.pop("input_squared") - means.pop("input") ** 2
        if "squared_error" in means:
            means["unexplained"] = means.pop("squared_error") / max(variance, 1e-12)
        return means | {"windows": windows}


def is_first() -> bool:
    """Whether this is the worker that speaks for all."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def summed(values: list[float]) -> list[float]:
    """The sums over all workers."""
    if not torch.distributed.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=ray.train.torch.get_device())
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()


def anyone(here: bool) -> bool:
    """Whether it is so on any worker: all must leave the loop together."""
    return sum(summed([float(here)])) > 0


def fit_scale(library: Library, model: Embedder, config: TrainConfig, parts: Split) -> Encoder:
    """The encoder with the scale of its vectors, from those of tracks that it learned from."""
    spectrograms = library.table("spectrograms", config.set)
    sample = parts.train[:FITTED_TRACKS]  # the smallest hashes: as good as drawn by chance
    rows = dataset(spectrograms, ["track_key", model.spec])
    batch = partial(pooled_batch, keys=ray.put(sample), model=ray.put(model.eval()))
    table = rows.map_batches(batch, batch_format="pyarrow", batch_size=64).to_pandas()
    vectors: Vectors = np.stack(table.sort_values("track_key")["vector"].to_list())
    project = runs.standardising if model.unlike_units else runs.whitening
    return Encoder(model.eval(), vectors.mean(axis=0), project(vectors))


def pooled_batch(rows: pa.Table, keys: ray.ObjectRef, model: ray.ObjectRef) -> dict[str, Any]:
    """Rows of spectrograms → the pooled vectors of those that are wanted, as the model gives them."""
    embedder: Embedder = ray.get(model)
    wanted = _wanted(rows, keys)
    clips = [stored(cell.as_py(), SPECS[embedder.spec]) for cell in wanted[embedder.spec]]
    vectors = pooled(embedder, clips) if clips else np.empty((0, embedder.dimension), np.float32)
    return {"track_key": wanted["track_key"].to_numpy(), "vector": vectors}
