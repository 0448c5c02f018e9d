"""A run: what training leaves behind, and all that turning sound into vectors needs.

runs/<run>/split.parquet      the tracks that it learned from, and those held out
runs/<run>/train/             Ray Train's checkpoints: a training that was cut off goes on from there
runs/<run>/tensorboard/       the same curve as it grew, for TensorBoard
runs/<run>/curve.parquet      one row an epoch: losses, learning rate, throughput, length of the gradient
runs/<run>/model.safetensors  weights, and the scale of the vectors: their mean, a projection
runs/<run>/run.json           config, data, code, metrics; written last, so a run without it is unfinished
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from numpy.typing import NDArray

from songray.library import Library, read_json, write_json, write_parquet
from songray.models import MODELS
from songray.models.base import Embedder, ModelConfig

Pooling = Literal["mean", "mean+deviation"]
Vectors = NDArray[np.float32]  # (tracks, dimension)


@dataclass(frozen=True)
class Run:
    name: str
    model: str  # of MODELS
    model_config: dict[str, Any]
    config: dict[str, Any]  # of the training
    set: str  # of the spectrograms
    tracks: dict[str, int]  # learned from (train), and held out (validation)
    data: str  # fingerprint of their keys
    made_with: dict[str, str]
    metrics: dict[str, float]  # of the epoch whose weights were kept
    curve: list[dict[str, float]]  # the metrics of all epochs
    stopped: str = ""  # why training ended before its last epoch, if it did

    def __str__(self) -> str:
        text = f"train: run {self.name}: {self.tracks['train']} tracks, {self.tracks['validation']} held out"
        if not self.metrics:
            return f"{text}; nothing to learn but the scale of the vectors"
        last, best = self.curve[-1], self.metrics
        quality = f"loss {best['validation_loss']:.5f}"
        if "validation_unexplained" in best:
            quality += f", {best['validation_unexplained']:.1%} of the variance unexplained"
        return (
            f"{text}; {last['epoch']:.0f} epochs, {last['steps']:.0f} steps, {last['seconds']:.0f} s"
            f"{self.stopped and f' ({self.stopped})'}; "
            f"epoch {best['epoch']:.0f} was kept, on the tracks held out: {quality}"
        )


@dataclass(frozen=True)
class Encoder:
    """The way from windows to vectors: a model, how the vectors of windows become one of a clip, and what
    was fitted on those of its training."""

    model: Embedder
    mean: Vectors  # (dimension,)
    projection: Vectors  # (dimension, length of a vector), or (dimension,): a factor for each number
    pooling: Pooling = "mean"

    def unit(self, pooled: Vectors) -> Vectors:
        """Pooled vectors, (tracks, dimension) → centred, projected and of length 1."""
        centred = pooled - self.mean
        scaled = centred @ self.projection if self.projection.ndim == 2 else centred * self.projection
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        unit: Vectors = (scaled / np.maximum(lengths, 1e-12)).astype(np.float32)
        return unit


def standardising(pooled: Vectors) -> Vectors:
    """The factors that give every number the deviation 1 among these vectors, (tracks, dimension)."""
    deviation = pooled.std(axis=0, dtype=np.float64)
    return (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def whitening(pooled: Vectors, power: float = 1.0) -> Vectors:
    """The projection to the first principal components of these vectors, (tracks, dimension), each divided
    by its deviation to that power, by default to a deviation of 1: else the one or two directions that hold
    nearly all of a latent space's variance, such as loudness, decide every cosine. As many components as the
    tracks can tell, one in four, 64 at most."""
    centred = pooled - pooled.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    telling = int((sizes > 1e-6 * sizes[0]).sum())
    kept = max(1, min(len(pooled) // 4, 64, telling))
    deviations = np.maximum(sizes[:kept], 1e-12) / np.sqrt(len(pooled))
    projection: Vectors = (directions[:kept] / deviations[:, None] ** power).T.astype(np.float32)
    return projection


def centring(pooled: Vectors) -> Vectors:
    """No factor but 1: what a model learned as an angle stays one."""
    return np.ones(pooled.shape[1], np.float32)


def tempering(pooled: Vectors) -> Vectors:
    """Every number to a deviation of 1, then whitening in part: what a model was taught to tell apart by
    keeps some of its weight. Of 0, 0.25, 0.5 and 0.75, this power gave `contrastive` the most precise
    nearest neighbours on real clips, and on synthetic songs the best clusters of styles."""
    factors = standardising(pooled)
    projection: Vectors = factors[:, None] * whitening(pooled * factors, power=0.5)
    return projection


SCALES = {"standardise": standardising, "whiten": whitening, "temper": tempering, "centre": centring}


def default_name(model: str, *shaping: Any) -> str:
    """The model and a hash of all that shapes the result: never a date."""
    text = json.dumps(shaping, sort_keys=True)
    return f"{model}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def find(library: Library, name: str) -> Run | None:
    """The finished run of that name, if there is one."""
    content = read_json(library.filesystem, library.path("runs", name, "run.json"))
    return Run(**content) if content else None


def finished(library: Library) -> list[str]:
    """Names of the finished runs, sorted."""
    return [name for name in library.folders("runs") if find(library, name)]


def choose(library: Library, name: str) -> Run:
    """The run that is meant: by name, or the only one there is. Raises ValueError with the choices."""
    names = finished(library)
    if not names:
        raise ValueError("there is no finished run: run jobs/train.py first")
    if not name and len(names) > 1:
        raise ValueError(f"--run is empty and there are several runs: name one of {', '.join(names)}")
    run = find(library, name or names[0])
    if run is None:
        raise ValueError(f"--run {name}: there is no such run; there are {', '.join(names)}")
    return run


def save(library: Library, run: Run, encoder: Encoder) -> None:
    """Write the run, run.json last."""
    library.filesystem.create_dir(library.path("runs", run.name), recursive=True)
    tensors = {f"model.{name}": tensor for name, tensor in encoder.model.state_dict().items()}
    scale = {"mean": encoder.mean, "projection": encoder.projection}
    tensors |= {name: torch.from_numpy(array) for name, array in scale.items()}
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    if run.curve:
        rows = pa.Table.from_pylist(run.curve)
        write_parquet(library.filesystem, library.path("runs", run.name, "curve.parquet"), rows)
    path = library.path("runs", run.name, "model.safetensors")
    with library.filesystem.open_output_stream(path) as stream:
        stream.write(content)
    write_json(
        library.filesystem, posixpath.join(posixpath.dirname(path), "run.json"), dataclasses.asdict(run)
    )


def load(library: Library, run: Run) -> Encoder:
    """The run's encoder, ready to embed. Nothing is unpickled."""
    with library.filesystem.open_input_stream(library.path("runs", run.name, "model.safetensors")) as stream:
        tensors = safetensors.torch.load(stream.read())
    mean, projection = tensors.pop("mean").numpy(), tensors.pop("projection").numpy()
    model = model_config(run).build()
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    return Encoder(model.eval(), mean, projection, run.config.get("pooling", "mean"))


def model_config(run: Run) -> ModelConfig:
    """The options of the run's model, as they were."""
    if run.model not in MODELS:
        raise ValueError(f"run {run.name} is of the model {run.model}; this songray has {', '.join(MODELS)}")
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in run.model_config.items()}
    return MODELS[run.model](**options)


def made_with() -> dict[str, str]:
    """Versions of the code that a result depends on."""
    names = ("songray", "torch", "ray", "librosa", "soundfile", "soxr", "numpy")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # songray itself need not be installed on a cluster
        return "not installed"
