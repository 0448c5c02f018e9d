"""Reads spectrograms and tracks, writes a run: a model that is trained, data-parallel, under Ray Train."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute

from songray.cluster import connect
from songray.errors import InvalidOption, MissingInput, TrainingFailed
from songray.keys import REVISION_BITS, are_among
from songray.learning import runs
from songray.learning.models import LearningConfig, ModelConfig
from songray.learning.models.formats import stored_options
from songray.learning.runs import Pooling, Run
from songray.learning.split import Split, read_split, split, write_split
from songray.library import Library
from songray.stages import RETAIN_MEMORY

if TYPE_CHECKING:  # Ray and torch are imported in functions: jobs import this module for its options
    import ray.data
    import ray.train
    import ray.train.torch

    from songray.learning.encoder import ModelEncoder
    from songray.learning.loop import Curve, Metrics
    from songray.learning.models.base import Embedder
    from songray.learning.worker import Job


@dataclass(frozen=True)
class TrainConfig:
    run: str = ""
    """Name of the run; by default the model and a hash of all options on which the result depends."""
    set: str = "default"
    """Name of the set of spectrograms to train on."""
    max_tracks: int = 1_000_000
    """The most tracks to learn from and to validate with, a random sample of the set."""
    validation_share: float = 0.1
    """Share of the artists whose tracks are held out for validation."""
    seed: int = 0
    """Seed of the split, of the initial weights and of the order of the data."""
    max_seconds: float | None = None
    """Training stops after this many seconds, in whichever epoch."""
    patience: int | None = None
    """Training stops after this many epochs in a row without a better validation loss."""
    pooling: Pooling = "mean"
    """Pooling of the vectors of a clip's windows: their mean, or mean and standard deviation."""
    bf16: bool = False
    """Use automatic mixed precision with bfloat16; weights stay in float32."""
    workers: int = 1
    """Number of data-parallel workers, which share each batch."""
    max_workers: int | None = None
    """Largest number of workers, as many as the cluster has resources for; the order of the data then depends
    on their number."""
    keep_gigabytes: float = 1.0
    """Gigabytes of clips that a worker keeps in memory; it reads a larger share anew in each pass."""
    keep_checkpoints: int = 1
    """Number of checkpoints of the best epochs that are kept, beside the last one."""
    compile: bool = False
    """Compile the model with torch.compile."""
    threads: int = 2
    """Number of CPU threads of a worker."""
    gpu: bool = False
    """Give each worker a GPU."""
    worker_failures: int = 3
    """Number of times that training resumes from its last checkpoint after a worker died."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise InvalidOption(f"--validation-share {self.validation_share}: must lie between 0 and 1")
        for name in ("workers", "threads", "keep_checkpoints", "max_tracks"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InvalidOption(f"--{flag} {getattr(self, name)}: must be at least 1")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise InvalidOption(
                f"--max-workers {self.max_workers}: must be at least --workers {self.workers}"
            )
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise InvalidOption(f"--max-seconds {self.max_seconds}: must be positive")

    @property
    def result_options(self) -> dict[str, Any]:
        """The options on which the result depends, as they are stored; earlier versions had no max_tracks."""
        names = ["set", "validation_share", "seed", "max_seconds", "patience", "pooling", "bf16", "workers",
                 "max_workers", "keep_gigabytes"]  # fmt: skip
        names += ["max_tracks"] if self.max_tracks != TrainConfig.max_tracks else []
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Trained:
    model: Embedder
    metrics: Metrics = field(default_factory=dict)  # of the epoch whose weights the model has
    curve: Curve = field(default_factory=list)
    stopped: str = ""  # reason why training ended before its last epoch, or ""


def train(library: Library, model: str, model_config: ModelConfig, config: TrainConfig) -> Run:
    """Train a model, or resume an interrupted training; a finished run is returned as it is."""
    from songray.learning import encoder, targets

    model_config = targets.completed(library, model_config)
    options = dataclasses.asdict(model_config)  # type: ignore[call-overload]
    stored = {"model": model, "model_config": stored_options(options), "config": config.result_options}
    name = config.run or runs.default_name(model, stored)
    with library.lease(f"runs/{name}") as lease:
        runs.claim(library, name, stored)
        if (finished := runs.find(library, name)) is not None:
            return finished
        run, fitted = train_run(library, name, model, model_config, config)
        lease.check()
        encoder.save(library, run, fitted)
    return run


def train_run(
    library: Library, name: str, model: str, model_config: ModelConfig, config: TrainConfig
) -> tuple[Run, ModelEncoder]:
    """A run and its encoder, which are not stored yet."""
    from songray.learning import fit

    parts = hold_out(library, name, config, declared(model_config))
    connect()
    if isinstance(model_config, LearningConfig):
        trained = train_model(make_job(library, name, model, model_config, config, parts), config, parts)
    else:
        trained = Trained(fit.fit_baseline(library, config.set, model_config, config.seed, parts))
    fitted = fit.fit_scale(library, config.set, trained.model, parts, config.pooling)
    run = Run(
        name=name,
        model=model,
        model_config=dataclasses.asdict(model_config),  # type: ignore[call-overload]
        config=config.result_options,
        set=config.set,
        tracks={"train": parts.train.size, "validation": parts.validation.size},
        data=hashlib.sha256(parts.train.tobytes() + parts.validation.tobytes()).hexdigest(),
        made_with=runs.software_versions(),
        metrics=trained.metrics,
        curve=trained.curve,
        stopped=trained.stopped,
    )
    return run, fitted


def hold_out(library: Library, run: str, config: TrainConfig, model: Embedder) -> Split:
    """The split of the run, of the tracks with a target where the model learns from targets: stored once, so
    that a training that resumes uses the same tracks.

    Raises MissingInput where the set has fewer than two usable tracks.
    """
    from songray.learning.targets import with_targets

    if (stored := read_split(library, run)) is not None:
        return stored
    spectrograms = library.table("spectrograms", config.set)
    keys = spectrograms.sample_keys(config.max_tracks, with_targets(library, model))
    if keys.size < 2:
        raise MissingInput(
            f"spectrograms/{config.set} has {keys.size} usable tracks, and training needs at least two: run "
            "`songray transform` first"
        )
    columns = ["track_id", "artist_ids", "recording", "isrc"]
    tracks = library.table("tracks").newest_rows(keys >> REVISION_BITS, columns)
    usable = tracks.filter(pa.array(are_among(tracks["track_key"].to_numpy(), keys)))
    parts = split(usable, config.validation_share, config.seed)
    write_split(library, run, parts)
    return parts


def make_job(
    library: Library, run: str, model: str, model_config: LearningConfig, config: TrainConfig, parts: Split
) -> Job:
    """The arguments of the workers of a training."""
    from songray.learning.worker import Job

    return Job(
        library=library,
        run=run,
        model=model,
        model_config=model_config,
        tracks={"train": parts.train.size, "validation": parts.validation.size},
        seed=config.seed,
        max_seconds=config.max_seconds,
        patience=config.patience,
        keep_bytes=config.keep_gigabytes * 1e9,
        bf16=config.bf16,
        compile=config.compile,
        threads=config.threads,
    )


def train_model(job: Job, config: TrainConfig, parts: Split) -> Trained:
    """Train under Ray Train, from the last checkpoint where there is one; the model has its best weights.

    Raises TrainingFailed where training diverged before its first checkpoint.
    """
    from songray.learning.loop import build_model, load_curve, load_weights

    result = trainer(job, config, parts).fit()
    if result.checkpoint is None:
        raise TrainingFailed(
            f"training ended in its first epoch: {result.return_value}; lower --learning-rate"
        )
    with result.checkpoint.as_directory() as folder:
        curve = load_curve(Path(folder))
    best = result.checkpoint
    if metric := _best_metric(declared(job.model_config)):
        best = min(result.best_checkpoints, key=lambda pair: pair[1][metric])[0]
    with best.as_directory() as folder:
        weights, epoch = load_weights(Path(folder), job.model), load_curve(Path(folder))[-1]
    model = build_model(job.model_config, job.seed, weights)
    return Trained(model, epoch, curve, result.return_value or "")


def trainer(job: Job, config: TrainConfig, parts: Split) -> ray.train.torch.TorchTrainer:
    """Ray Train's trainer of a run. Raises InvalidOption where its workers cannot share the work."""
    import ray.train.torch

    from songray.learning.feed import clip_rows
    from songray.learning.worker import train_worker

    model = declared(job.model_config)
    check_shares(model, job.model_config, config, parts)
    keys = {"train": parts.train, "validation": parts.validation}
    most = config.max_workers or config.workers
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(config.workers, most) if most > config.workers else most, use_gpu=config.gpu
        ),
        run_config=_run_config(job, config, _best_metric(model)),
        datasets={
            part: clip_rows(job.library, config.set, model, keys[part], parts.same_recording) for part in keys
        },
        dataset_config=ray.train.DataConfig(
            datasets_to_split=[part for part in keys if keys[part].size >= most],
            execution_options=_ordered(),
        ),
    )


def _run_config(job: Job, config: TrainConfig, metric: str | None) -> ray.train.RunConfig:
    import ray.train

    return ray.train.RunConfig(
        name="train",
        storage_path=job.library.path("runs", job.run),
        storage_filesystem=job.library.filesystem,
        worker_runtime_env=RETAIN_MEMORY,
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        failure_config=ray.train.FailureConfig(max_failures=config.worker_failures),
        checkpoint_config=ray.train.CheckpointConfig(
            config.keep_checkpoints, checkpoint_score_attribute=metric, checkpoint_score_order="min"
        ),
    )


def _ordered() -> ray.data.ExecutionOptions:
    """Blocks keep the order of the files, so that a seed gives the same batches again."""
    import ray.data

    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


def _best_metric(model: Embedder) -> str | None:
    """The reported metric that is minimal in the best epoch."""
    return f"validation_{model.validation_metric}" if model.validation_metric else None


def declared(model_config: ModelConfig) -> Embedder:
    """A model without memory for its weights, for the attributes that it declares."""
    import torch

    from songray.learning.models.build import build

    with torch.device("meta"):
        return build(model_config)


def check_shares(model: Embedder, model_config: LearningConfig, config: TrainConfig, parts: Split) -> None:
    """Raise InvalidOption where --workers workers cannot share a batch equally, or have too few tracks. Where
    more workers join, the share of each is rounded down."""
    windows = model.views * config.workers
    if model_config.batch_size % windows:
        raise InvalidOption(
            f"--batch-size {model_config.batch_size} cannot be shared equally by {config.workers} workers, "
            f"with {model.views} windows of a clip each: choose a multiple of {windows}"
        )
    if parts.train.size < config.workers:
        raise InvalidOption(f"--workers {config.workers}: only {parts.train.size} tracks to learn from")
