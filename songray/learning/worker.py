"""What each worker of Ray Train runs: all epochs from the last checkpoint on."""

from __future__ import annotations

import gc
import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from tensorboardX import SummaryWriter

from songray.learning.feed import Feed, FeedConfig
from songray.learning.loop import (
    Curve,
    Diverged,
    Learner,
    Limits,
    Metrics,
    build_learner,
    build_model,
    is_first,
    resume,
    run_epoch,
    save_state,
    validate,
)
from songray.learning.models.base import Embedder
from songray.learning.models.config import LearningConfig
from songray.library import Library


@dataclass(frozen=True)
class Job:
    """The arguments of all workers of a training."""

    library: Library
    run: str
    model: str  # a key of MODELS
    model_config: LearningConfig
    tracks: dict[str, int]  # number of tracks in the parts "train" and "validation"
    seed: int = 0
    max_seconds: float | None = None
    patience: int | None = None
    keep_bytes: float = math.inf
    bf16: bool = False
    compile: bool = False
    threads: int = 2


def train_worker(arguments: dict[str, Any]) -> str:
    """Run all epochs from the last checkpoint on; returns the reason why training stopped early, or "".

    Ray destroys the process group after this function. Where DistributedDataParallel's reducer then drops the
    last reference to it, it does so with the interpreter lock held, and waits for gloo's thread, which waits
    for that lock (torch 2.13): a deadlock. So the wrapped model is collected before this function returns.
    """
    reason = run_epochs(arguments["job"])
    gc.collect()
    return reason


def run_epochs(job: Job) -> str:
    """Train, validate and report each epoch; returns the reason why training stopped early, or ""."""
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(job.threads)
    learner = prepare(job)
    curve: Curve = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            curve = resume(learner, Path(folder), job.model)
    train, validation = (feed(job, learner.model, part) for part in ("train", "validation"))
    epochs = job.model_config.epochs
    limits = Limits(epochs * train.steps, job.max_seconds or math.inf)
    while not (reason := stop_reason(job, learner.model, curve)) and len(curve) < epochs:
        torch.manual_seed(hash((job.seed, len(curve), ray.train.get_context().get_world_rank())))
        try:
            metrics = run_epoch(learner, train.epoch(len(curve) + 1), limits, curve[-1] if curve else {})
        except Diverged as error:
            return str(error)
        curve.append(metrics | validate(learner, validation.epoch(0)))
        report(job, learner, curve)
    return reason


def prepare(job: Job) -> Learner:
    """The model on the device of this worker, wrapped so that gradients are averaged over the workers."""
    model = build_model(job.model_config, job.seed).to(ray.train.torch.get_device())
    alternating = {"find_unused_parameters": len(set(model.optimizer_groups)) > 1}
    wrapped = ray.train.torch.prepare_model(model, parallel_strategy_kwargs=alternating)
    if job.compile:
        wrapped = torch.compile(wrapped)
    return build_learner(model, job.model_config, wrapped, job.bf16)


def feed(job: Job, model: Embedder, part: str) -> Feed:
    """This worker's share of a part; where it has fewer tracks than there are workers, each reads all."""
    workers, tracks = ray.train.get_context().get_world_size(), job.tracks[part]
    config = FeedConfig(
        tracks=tracks // workers if tracks >= workers else tracks,
        batch_clips=max(1, job.model_config.batch_size // (model.views * workers)),
        seed=job.seed,
        keep_bytes=job.keep_bytes,
        device=ray.train.torch.get_device(),
    )
    return Feed(ray.train.get_dataset_shard(part), model, config)


def stop_reason(job: Job, model: Embedder, curve: Curve) -> str:
    """The reason to stop before the next epoch, or ""."""
    if curve and job.max_seconds and curve[-1]["seconds"] >= job.max_seconds:
        return f"stopped after {job.max_seconds:g} s"
    if job.patience is None or model.validation_metric is None or not curve:
        return ""
    losses = [epoch[f"validation_{model.validation_metric}"] for epoch in curve]
    epochs_since_best = len(losses) - 1 - int(np.argmin(losses))
    return f"no improvement for {epochs_since_best} epochs" if epochs_since_best >= job.patience else ""


def report(job: Job, learner: Learner, curve: Curve) -> None:
    """Report the epoch to Ray Train. The first worker also writes it for TensorBoard, with a checkpoint."""
    if not is_first():
        ray.train.report(curve[-1])
        return
    print(progress(curve[-1]), flush=True)
    write_events(job.library, job.run, curve[-1])
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), learner, curve)
        ray.train.report(curve[-1], Checkpoint.from_directory(folder))


def write_events(library: Library, run: str, epoch: Metrics) -> None:
    """Add a file with the metrics of an epoch to the run's TensorBoard folder."""
    path = library.path("runs", run, "tensorboard")
    suffix = f".{epoch['epoch']:05.0f}"
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, write_to_disk=True, filename_suffix=suffix) as writer:
            for name, value in epoch.items():
                writer.add_scalar(name, value, epoch["steps"])
        library.filesystem.create_dir(path, recursive=True)
        pyarrow.fs.copy_files(folder, path, pyarrow.fs.LocalFileSystem(), library.filesystem)


def progress(epoch: Metrics) -> str:
    return (
        f"epoch {epoch['epoch']:.0f}: {epoch['steps']:.0f} steps, {epoch['seconds']:.0f} s, "
        f"{epoch['windows_per_second']:.0f} windows/s, learning rate {epoch['learning_rate']:.1e}, "
        f"gradient norm {epoch['gradient_norm']:.2g}, loss {epoch['loss']:.5f}, "
        f"validation loss {epoch['validation_loss']:.5f}"
    )
