"""The encoder of a run: a model, its pooling and the scale of its vectors; fitted, stored and used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from songray.audio.spectrograms import Spectrogram
from songray.learning.models.base import Embedder
from songray.learning.models.build import build
from songray.learning.models.formats import current_parameters
from songray.learning.runs import Pooling, Run, model_config, save_record, weights_path
from songray.learning.windows import embed_clips
from songray.library import Library, Vectors

WCCN_POWER = 0.75  # 0: no normalisation, 1: the within-class covariance becomes the identity
MAX_COMPONENTS = 64
MODEL_PREFIX = "model."  # of the names of the model's parameters in model.safetensors


@dataclass(frozen=True)
class Encoder:
    """Maps pooled vectors of a model to unit vectors by a fitted mean and projection."""

    model: Embedder
    mean: Vectors  # (dimension,)
    projection: Vectors  # (dimension, components), or (dimension,): a factor for each number
    pooling: Pooling = "mean"

    def normalise(self, pooled: Vectors) -> Vectors:
        """Pooled vectors, (clips, dimension) → centred, projected and scaled to length 1."""
        centred = pooled - self.mean
        scaled = centred @ self.projection if self.projection.ndim == 2 else centred * self.projection
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        unit: Vectors = (scaled / np.maximum(lengths, 1e-12)).astype(np.float32)
        return unit


def encode(encoder: Encoder, spectrograms: Sequence[Spectrogram], half: bool = False) -> Vectors:
    """Stored spectrograms, (frames, bins) each → unit vectors, (clips, components).

    The vector of a clip does not depend on the other clips.
    """
    return encoder.normalise(embed_clips(encoder.model, spectrograms, encoder.pooling, half))


def fit_encoder(model: Embedder, clips: Sequence[Vectors], pooling: Pooling = "mean") -> Encoder:
    """The encoder with the scale that its model declares, fitted on what windows.jackknife_clips returns for
    clips of the training: (1 + parts, dimension) each."""
    whole = np.stack([vectors[0] for vectors in clips])
    differences = np.concatenate([vectors[1:] - vectors[0] for vectors in clips])
    projection = wccn(whole, differences) if model.scale == "wccn" else SCALES[model.scale](whole)
    return Encoder(model, whole.mean(axis=0), projection, pooling)


def standardise(pooled: Vectors) -> Vectors:
    """The factors, (dimension,), by which each number gets a standard deviation of 1 over these vectors."""
    deviation = pooled.std(axis=0, dtype=np.float64)
    return (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def centre(pooled: Vectors) -> Vectors:
    """Factors of 1: vectors that were trained for their cosine are only centred."""
    return np.ones(pooled.shape[1], np.float32)


def whiten(pooled: Vectors) -> Vectors:
    """The projection to the first principal components, each divided by its standard deviation. Otherwise the
    one or two directions that have nearly all of a latent space's variance, such as loudness, decide every
    cosine."""
    directions, deviations = principal_components(pooled, tracks_per_component=4)
    projection: Vectors = (directions / deviations).astype(np.float32)
    return projection


def wccn(pooled: Vectors, differences: Vectors) -> Vectors:
    """The projection of within-class covariance normalisation (Hatch et al., 2006): numbers are standardised,
    projected to principal components, and multiplied by the within-class covariance to the power
    −WCCN_POWER / 2.

    `differences`, (parts, dimension), are those between the vectors of a clip with and without a part of its
    windows; their covariance is shrunk as by Ledoit and Wolf (2004). Of the powers 0.5, 0.75 and 1, and of
    one component for every four, three and two tracks, these gave `contrastive` the most precise nearest
    neighbours on real clips without a loss on the styles of synthetic songs.
    """
    from sklearn.covariance import ledoit_wolf  # loaded when called: it takes as long as torch

    factors = standardise(pooled)
    directions, deviations = principal_components(pooled * factors, tracks_per_component=3)
    within = differences * factors @ directions
    if not within.any():  # every clip has one window: the variance between tracks takes its place
        within = np.diag(deviations)
    values, vectors = np.linalg.eigh(ledoit_wolf(within, assume_centered=True)[0])
    powers = np.maximum(values, 1e-6 * values.max()) ** (-WCCN_POWER / 2)
    projection: Vectors = (factors[:, None] * (directions @ (vectors * powers @ vectors.T))).astype(
        np.float32
    )
    return projection


def principal_components(
    pooled: Vectors, tracks_per_component: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first principal directions of vectors, (dimension, components), and the standard deviation along
    each. Their number is limited by that of the tracks, by the rank, and by MAX_COMPONENTS."""
    centred = pooled - pooled.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    rank = int((sizes > 1e-6 * sizes[0]).sum())
    kept = max(1, min(len(pooled) // tracks_per_component, MAX_COMPONENTS, rank))
    return directions[:kept].T, np.maximum(sizes[:kept], 1e-12) / np.sqrt(len(pooled))


SCALES = {"standardise": standardise, "whiten": whiten, "centre": centre}


def save(library: Library, run: Run, encoder: Encoder) -> None:
    """Write model.safetensors, and then the record of the run."""
    tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in encoder.model.state_dict().items()}
    tensors["mean"] = torch.from_numpy(encoder.mean)
    tensors["projection"] = torch.from_numpy(encoder.projection)
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    library.filesystem.create_dir(library.path("runs", run.name), recursive=True)
    with library.filesystem.open_output_stream(weights_path(library, run.name)) as stream:
        stream.write(content)
    save_record(library, run)


def load(library: Library, run: Run) -> Encoder:
    """The encoder of a run, in evaluation mode. Nothing is unpickled."""
    with library.filesystem.open_input_stream(weights_path(library, run.name)) as stream:
        tensors = safetensors.torch.load(stream.read())
    mean, projection = tensors.pop("mean").numpy(), tensors.pop("projection").numpy()
    weights = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in tensors.items()}
    model = build(model_config(run))
    model.load_state_dict(current_parameters(run.model, weights))
    return Encoder(model.eval(), mean, projection, run.pooling)
