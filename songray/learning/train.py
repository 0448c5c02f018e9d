"""Reads spectrograms and tracks, writes a run: a model that learned, data-parallel, under Ray Train."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.fs
import pyarrow.parquet
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from tensorboardX import SummaryWriter

from songray.learning import runs
from songray.learning.feed import Feed, clips_of
from songray.learning.fit import fit_baseline, fit_scale
from songray.learning.loop import (
    Curve,
    Diverged,
    Learner,
    Limits,
    Metrics,
    is_first,
    learner,
    load_curve,
    load_weights,
    resume,
    run_epoch,
    save_state,
    seeded,
    validate,
)
from songray.learning.models.base import Embedder, LearningConfig, ModelConfig
from songray.learning.runs import Pooling, Run
from songray.learning.windows import Split, split
from songray.library import Library, newest_revisions, write_parquet
from songray.stages import RETAIN_MEMORY


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
    patience: int | None = None
    """Stop after so many epochs in a row that were no better on the tracks held out."""
    pooling: Pooling = "mean"
    """How the vectors of a clip's windows become one: their mean, or with their deviation beside it."""
    bf16: bool = False
    """Multiply in bfloat16, with weights in single precision."""
    workers: int = 1
    """Data-parallel workers, which share each batch."""
    max_workers: int | None = None
    """As many workers as the cluster has room for, from --workers to this; the order of the data then
    depends on how many there were."""
    keep_gigabytes: float = 1.0
    """Clips that a worker keeps in memory; where its share of them is larger, they are read in each pass."""
    keep_checkpoints: int = 1
    """How many of the best epochs to keep, beside the last."""
    compile: bool = False
    """Compile the model by torch.compile."""
    threads: int = 2
    """Threads of a worker on CPU."""
    gpu: bool = False
    """Give each worker a GPU."""
    worker_failures: int = 3
    """Times that training goes on from its last epoch after a worker died."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: must lie between 0 and 1")
        for name in ("workers", "threads", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"max_workers is {self.max_workers}: must be at least {self.workers}, the workers"
            )
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds is {self.max_seconds}: must be above 0")

    @property
    def shaping(self) -> dict[str, Any]:
        """What the result depends on; how fast it comes is another matter."""
        names = ("set", "validation_share", "seed", "max_seconds", "patience", "pooling", "bf16", "workers",
                 "max_workers", "keep_gigabytes")  # fmt: skip
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
    if isinstance(model_config, LearningConfig):
        fitted = fit(library, name, model_config, config, parts)
    else:
        fitted = Fitted(fit_baseline(library, config.set, seeded(model_config, config.seed), parts))
    encoder = fit_scale(library, config.set, fitted.model, parts, config.pooling)
    run = Run(
        name=name,
        model=model,
        model_config=options,
        config=config.shaping,
        set=config.set,
        tracks={"train": parts.train.size, "validation": parts.validation.size},
        data=hashlib.sha256(parts.train.tobytes() + parts.validation.tobytes()).hexdigest(),
        made_with=runs.made_with(),
        metrics=fitted.metrics,
        curve=fitted.curve,
        stopped=fitted.stopped,
    )
    runs.save(library, run, encoder)
    return run


@dataclass(frozen=True)
class Fitted:
    model: Embedder
    metrics: Metrics = field(default_factory=dict)  # of the epoch whose weights it has
    curve: Curve = field(default_factory=list)
    stopped: str = ""  # why before its last epoch


def hold_out(library: Library, name: str, config: TrainConfig) -> Split:
    """The run's split: drawn once, so that a training that goes on sees the data it began with."""
    path = library.path("runs", name, "split.parquet")
    if library.filesystem.get_file_info(path).is_file:
        table = pa.parquet.read_table(path, filesystem=library.filesystem)
        keys, held = table["track_key"].to_numpy(), table["held_out"].to_numpy()
        takes = table.filter(table["recording"].is_valid())
        same_recording = zip(takes["track_key"].to_pylist(), takes["recording"].to_pylist(), strict=True)
        return Split(keys[~held], keys[held], dict(same_recording))
    spectrograms = library.table("spectrograms", config.set).read(["track_key", "error"])
    good = spectrograms.filter(spectrograms["error"].is_null())
    keys = newest_revisions(np.unique(good["track_key"].to_numpy()))
    if keys.size < 2:
        raise ValueError(
            f"spectrograms/{config.set} has {keys.size} tracks that can be used, and two are the least: "
            "run jobs/transform.py first"
        )
    tracks = library.table("tracks").newest(["track_key", "track_id", "artist_ids", "recording", "isrc"])
    known = tracks.filter(pa.compute.is_in(tracks["track_key"], pa.array(keys)))
    parts = split(known, config.validation_share, config.seed)
    keys = np.concatenate([parts.train, parts.validation])
    held = np.repeat([False, True], [parts.train.size, parts.validation.size])
    same_recording = pa.array([parts.same_recording.get(key) for key in keys.tolist()], pa.int64())
    table = pa.table({"track_key": keys, "held_out": held, "recording": same_recording})
    write_parquet(library.filesystem, path, table)
    return parts


def fit(
    library: Library, name: str, model_config: LearningConfig, config: TrainConfig, parts: Split
) -> Fitted:
    """Train under Ray Train, from its last checkpoint where there is one: the model with its best weights.
    Raises ValueError where no epoch came to a good end."""
    score = validation_metric(declared(model_config))
    result = trainer(library, name, model_config, config, parts, train_worker).fit()
    if result.checkpoint is None:
        raise ValueError(f"training ended in its first epoch: {result.return_value}; lower --learning-rate")
    with result.checkpoint.as_directory() as folder:
        curve = load_curve(Path(folder))
    best = result.checkpoint
    if score:
        best = min(result.best_checkpoints, key=lambda pair: pair[1][score])[0]
    with best.as_directory() as folder:
        weights, epoch = load_weights(Path(folder)), load_curve(Path(folder))[-1]
    model = seeded(model_config, config.seed, weights)
    return Fitted(model, epoch, curve, result.return_value or "")


def trainer(
    library: Library,
    name: str,
    model_config: LearningConfig,
    config: TrainConfig,
    parts: Split,
    work: Callable[[dict[str, Any]], Any],
) -> ray.train.torch.TorchTrainer:
    """Ray Train's workers for a run, each of which does `work` on its share of the tracks."""
    model = declared(model_config)
    check_shares(model, model_config, config, parts)
    score = validation_metric(model)
    keys = {"train": parts.train, "validation": parts.validation}
    most = config.max_workers or config.workers
    return ray.train.torch.TorchTrainer(
        work,
        train_loop_config={
            "library": library, "name": name, "model_config": model_config, "config": config,
            "tracks": {part: several.size for part, several in keys.items()},
        },
        scaling_config=ScalingConfig(
            num_workers=(config.workers, most) if most > config.workers else most, use_gpu=config.gpu
        ),
        run_config=RunConfig(
            name="train",
            storage_path=library.path("runs", name),
            storage_filesystem=library.filesystem,
            worker_runtime_env=RETAIN_MEMORY,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=config.worker_failures),
            checkpoint_config=CheckpointConfig(
                config.keep_checkpoints, checkpoint_score_attribute=score, checkpoint_score_order="min"
            ),
        ),
        datasets={
            part: clips_of(library, config.set, model, several, parts.same_recording)
            for part, several in keys.items()
        },
        dataset_config=ray.train.DataConfig(
            datasets_to_split=[part for part, several in keys.items() if several.size >= most],
            execution_options=_in_order(),
        ),
    )  # fmt: skip


def validation_metric(model: Embedder) -> str | None:
    """The metric that the best epoch has least of."""
    return f"validation_{model.validation_metric}" if model.validation_metric else None


def declared(model_config: ModelConfig) -> Embedder:
    """A model for its attributes alone, without memory for its weights."""
    with torch.device("meta"):
        return model_config.build()


def check_shares(model: Embedder, model_config: LearningConfig, config: TrainConfig, parts: Split) -> None:
    """A batch has the same size for any number of workers: raise ValueError where it cannot be shared
    equally. (Where more workers join than --workers, the share of each is rounded down.)"""
    windows = model.views * config.workers
    if model_config.batch_size % windows:
        raise ValueError(
            f"--batch-size {model_config.batch_size} cannot be shared equally by {config.workers} workers, "
            f"{model.views} windows of a clip each: choose a multiple of {windows}"
        )
    if parts.train.size < config.workers:
        raise ValueError(f"{parts.train.size} tracks to learn from are too few for {config.workers} workers")


def _in_order() -> ray.data.ExecutionOptions:
    """Blocks keep the order of the files, so that a seed gives the same batches again."""
    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


def train_worker(job: dict[str, Any]) -> str:
    """What each worker of Ray Train does: every epoch from the last checkpoint on. Why it stopped early.

    Ray destroys the process group after this function. Where DistributedDataParallel's reducer then drops the
    last reference to it, it does so with the interpreter lock held, and waits for gloo's thread, which waits
    for that lock (torch 2.13): a deadlock. So the wrapped model is collected before this function returns.
    """
    reason = run_epochs(job)
    gc.collect()
    return reason


def run_epochs(job: dict[str, Any]) -> str:
    """Train every epoch from the last checkpoint on; why it stopped before the last one, or ""."""
    logging.getLogger().setLevel(logging.WARNING)
    config: TrainConfig = job["config"]
    torch.set_num_threads(config.threads)
    learns = prepare(job["model_config"], config)
    curve: Curve = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            curve = resume(learns, Path(folder))
    train, validation = (feed(job, learns.model, part) for part in ("train", "validation"))
    epochs = job["model_config"].epochs
    limits = Limits(epochs * train.steps, config.max_seconds or float("inf"))
    while not (reason := stop(learns.model, curve, config)) and len(curve) < epochs:
        torch.manual_seed(hash((config.seed, len(curve), ray.train.get_context().get_world_rank())))
        try:
            measured = run_epoch(learns, train.epoch(len(curve) + 1), limits, curve[-1] if curve else {})
        except Diverged as error:
            return str(error)
        curve.append(measured | validate(learns, validation.epoch(0)))
        report(job, learns, curve)
    return reason


def prepare(model_config: LearningConfig, config: TrainConfig) -> Learner:
    """The model on this worker's device, wrapped so that the workers' gradients are one."""
    model = seeded(model_config, config.seed).to(ray.train.torch.get_device())
    adversaries = {"find_unused_parameters": len(set(model.optimizer_groups)) > 1}
    called = ray.train.torch.prepare_model(model, parallel_strategy_kwargs=adversaries)
    if config.compile:
        called = torch.compile(called)
    return learner(model, model_config, called, config.bf16)


def feed(job: dict[str, Any], model: Embedder, part: str) -> Feed:
    """This worker's share of the tracks to learn from, or to judge by: where these are fewer than the
    workers, each takes all."""
    config, workers = job["config"], ray.train.get_context().get_world_size()
    tracks = job["tracks"][part]
    return Feed(
        ray.train.get_dataset_shard(part),
        tracks=tracks // workers if tracks >= workers else tracks,
        model=model,
        count=max(1, job["model_config"].batch_size // (model.views * workers)),
        seed=config.seed,
        keep_bytes=config.keep_gigabytes * 1e9,
        device=ray.train.torch.get_device(),
    )


def stop(model: Embedder, curve: Curve, config: TrainConfig) -> str:
    """Why not to train on, if there is a reason."""
    if curve and config.max_seconds and curve[-1]["seconds"] >= config.max_seconds:
        return f"its {config.max_seconds:g} s were over"
    losses = (
        [epoch[f"validation_{model.validation_metric}"] for epoch in curve] if model.validation_metric else []
    )
    since_best = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
    if config.patience is not None and since_best >= config.patience:
        return f"no better for {since_best} epochs"
    return ""


def report(job: dict[str, Any], learns: Learner, curve: Curve) -> None:
    """Tell Ray Train of the epoch; the first worker adds the state from which it can go on."""
    if not is_first():
        ray.train.report(curve[-1])
        return
    print(progress(curve[-1]), flush=True)
    library = job["library"]
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, write_to_disk=True, filename_suffix=f".{len(curve):05d}") as writer:
            for name, value in curve[-1].items():
                writer.add_scalar(name, value, curve[-1]["steps"])
        place = library.path("runs", job["name"], "tensorboard")
        library.filesystem.create_dir(place, recursive=True)
        pa.fs.copy_files(folder, place, pa.fs.LocalFileSystem(), library.filesystem)
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), learns, curve)
        ray.train.report(curve[-1], Checkpoint.from_directory(folder))


def progress(epoch: Metrics) -> str:
    return (
        f"epoch {epoch['epoch']:.0f}: {epoch['steps']:.0f} steps, {epoch['seconds']:.0f} s, "
        f"{epoch['windows_per_second']:.0f} windows/s, learning rate {epoch['learning_rate']:.1e}, "
        f"gradient {epoch['gradient_norm']:.2g}, loss {epoch['loss']:.5f}, "
        f"held out {epoch['validation_loss']:.5f}"
    )
