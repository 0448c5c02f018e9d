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
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from numpy.typing import NDArray

from songray.learning.models import MODELS
from songray.learning.models.base import Embedder, ModelConfig
from songray.library import Library, Vectors, read_json, write_json, write_parquet

Pooling = Literal["mean", "mean+deviation"]
STEADINESS = 0.75  # 0: none, 1: chance moves every clip as far in each direction


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


def fitted(model: Embedder, clips: Sequence[Vectors], pooling: Pooling = "mean") -> Encoder:
    """The encoder with the scale of its vectors, from those of its training: of each clip what
    segments.jackknifed gives, (1 + parts, dimension)."""
    whole = np.stack([vectors[0] for vectors in clips])
    moves = np.concatenate([vectors[1:] - vectors[0] for vectors in clips])
    projection = steadying(whole, moves) if model.scale == "steady" else SCALES[model.scale](whole)
    return Encoder(model, whole.mean(axis=0), projection, pooling)


def standardising(pooled: Vectors) -> Vectors:
    """The factors that give every number the deviation 1 among these vectors, (tracks, dimension)."""
    deviation = pooled.std(axis=0, dtype=np.float64)
    return (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def centring(pooled: Vectors) -> Vectors:
    """No factor but 1: what a model learned as an angle stays one."""
    return np.ones(pooled.shape[1], np.float32)


def whitening(pooled: Vectors) -> Vectors:
    """The projection to the first principal components of these vectors, (tracks, dimension), each divided
    by its deviation: else the one or two directions that hold nearly all of a latent space's variance, such
    as loudness, decide every cosine."""
    directions, deviations = principal(pooled, share=4)
    projection: Vectors = (directions / deviations).astype(np.float32)
    return projection


def steadying(pooled: Vectors, moves: Vectors) -> Vectors:
    """Every number to a deviation of 1, then principal components, then each direction less by how far chance
    moves a clip in it: `moves`, (parts, dimension), are the differences that a part of a clip makes. Full
    division, a power of 1, is the within-class covariance normalisation of speaker recognition (Hatch et al.,
    2006); the covariance is shrunk as Ledoit and Wolf (2004) do.

    Of 0.5, 0.75 and 1, and of a component for every four, three and two tracks, these gave `contrastive` the
    most precise nearest neighbours on real clips without losing the styles of synthetic songs."""
    from sklearn.covariance import ledoit_wolf  # here: it takes as long to load as torch

    factors = standardising(pooled)
    directions, deviations = principal(pooled * factors, share=3)
    inside = moves * factors @ directions
    if not inside.any():  # all clips are of one window: what tells tracks apart stands for it
        inside = np.diag(deviations)
    values, turns = np.linalg.eigh(ledoit_wolf(inside, assume_centered=True)[0])
    lessened = turns * np.maximum(values, 1e-6 * values.max()) ** (-STEADINESS / 2) @ turns.T
    projection: Vectors = (factors[:, None] * (directions @ lessened)).astype(np.float32)
    return projection


def principal(pooled: Vectors, share: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first principal directions of vectors, (dimension, components), and the deviation along each: as
    many as the tracks can tell, one in `share`, 64 at most."""
    centred = pooled - pooled.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    telling = int((sizes > 1e-6 * sizes[0]).sum())
    kept = max(1, min(len(pooled) // share, 64, telling))
    return directions[:kept].T, np.maximum(sizes[:kept], 1e-12) / np.sqrt(len(pooled))


SCALES = {"standardise": standardising, "whiten": whitening, "centre": centring}


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
