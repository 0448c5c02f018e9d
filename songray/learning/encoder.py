"""The encoder of a run, of one model or of several: fitted, stored and used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import safetensors.torch
import torch

from songray.audio.spectrograms import Input
from songray.errors import CorruptData
from songray.learning import fusion
from songray.learning.fusion import Fusion
from songray.learning.models.base import Embedder
from songray.learning.models.build import build
from songray.learning.models.formats import current_parameters
from songray.learning.runs import Pooling, Run, member, model_config, save_record, weights_path
from songray.learning.scale import SCALES, unit, wccn
from songray.learning.windows import embed_clips, embed_windows, pool_clips, tag_clips
from songray.library import Library, Vectors

MODEL_PREFIX = "model."  # of the names of the model's parameters in model.safetensors

Inputs = Mapping[str, Sequence[Input]]  # of recordings, by the name of the model's input: see audio/inputs.py


class Encoder(Protocol):
    """Maps recordings to unit vectors. The vector of a recording does not depend on the others."""

    @property
    def specs(self) -> tuple[str, ...]:
        """What it takes of a recording, names in SPECS or of waveforms."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""

    def encode(self, inputs: Inputs) -> Vectors:
        """(recordings, dimension), of length 1."""

    def encode_text(self, text: str) -> Vectors | None:
        """The vector of a text, (dimension,), of length 1; None where the encoder takes no text."""


@dataclass(frozen=True)
class ModelEncoder:
    """One model, its pooling, and the scale of its vectors: a fitted mean and projection."""

    model: Embedder
    mean: Vectors  # (dimension,)
    projection: Vectors  # (dimension, components), or (dimension,): a factor for each number
    pooling: Pooling = "mean"
    half: bool = False  # embed by automatic mixed precision with float16
    has_tags: bool = False

    @property
    def specs(self) -> tuple[str, ...]:
        return (self.model.spec,)

    @property
    def dimension(self) -> int:
        return int(self.projection.shape[-1])

    def encode(self, inputs: Inputs) -> Vectors:
        return self.normalise(embed_clips(self.model, inputs[self.model.spec], self.pooling, self.half))

    def encode_text(self, text: str) -> Vectors | None:
        """Texts have another mean than sounds (Liang et al., 2022, arXiv:2203.02053), which is not known:
        that of sounds is not subtracted."""
        if not self.model.has_text or self.pooling != "mean":
            return None
        vector: Vectors = self._project(self.model.embed_text(text).cpu().numpy()[None])[0]
        return vector

    def encode_with_tags(self, inputs: Inputs) -> tuple[Vectors, Vectors | None]:
        """The vectors, and the probabilities of the tags, (recordings, tags), where the model gives some."""
        clips = embed_windows(self.model, inputs[self.model.spec], self.half)
        tags = tag_clips(self.model, clips) if self.has_tags else None
        return self.normalise(pool_clips(clips, self.pooling)), tags

    def normalise(self, pooled: Vectors) -> Vectors:
        """Pooled vectors, (clips, dimension) → centred, projected and scaled to length 1."""
        return self._project(pooled - self.mean)

    def _project(self, vectors: Vectors) -> Vectors:
        return unit(vectors @ self.projection if self.projection.ndim == 2 else vectors * self.projection)


@dataclass(frozen=True)
class FusionEncoder:
    """The encoders of several runs, whose vectors are joined."""

    members: tuple[Encoder, ...]
    fusion: Fusion

    @property
    def specs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec for encoder in self.members for spec in encoder.specs))

    @property
    def dimension(self) -> int:
        if self.fusion.directions is not None:
            return int(self.fusion.directions.shape[1])
        return sum(encoder.dimension for encoder in self.members)

    def encode(self, inputs: Inputs) -> Vectors:
        return self.fusion.join([encoder.encode(inputs) for encoder in self.members])

    def encode_text(self, text: str) -> Vectors | None:
        """Members that take no text have no part in the cosine."""
        vectors = [encoder.encode_text(text) for encoder in self.members]
        if all(vector is None for vector in vectors):
            return None
        parts = [
            np.zeros((1, encoder.dimension), np.float32) if vector is None else vector[None]
            for encoder, vector in zip(self.members, vectors, strict=True)
        ]
        joined: Vectors = self.fusion.join(parts)[0]
        return joined


def fit_encoder(model: Embedder, clips: Sequence[Vectors], pooling: Pooling = "mean") -> ModelEncoder:
    """The encoder with the scale that its model declares, fitted on what windows.jackknife_clips returns for
    clips of the training: (1 + parts, dimension) each."""
    whole = np.stack([vectors[0] for vectors in clips])
    differences = np.concatenate([vectors[1:] - vectors[0] for vectors in clips])
    projection = wccn(whole, differences) if model.scale == "wccn" else SCALES[model.scale](whole)
    return ModelEncoder(model, whole.mean(axis=0), projection, pooling)


def save(library: Library, run: Run, encoder: ModelEncoder) -> None:
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
    if not run.members:
        return load_model(library, run)
    members = (load(library, member(library, run, name)) for name in run.members)
    return FusionEncoder(tuple(members), fusion.load(library, run))


def load_model(library: Library, run: Run) -> ModelEncoder:
    """The encoder of a run of one model. Raises CorruptData where its parameters are not those of the model,
    as of a run of `distilled` by an earlier version."""
    with library.filesystem.open_input_stream(weights_path(library, run.name)) as stream:
        tensors = safetensors.torch.load(stream.read())
    mean, projection = tensors.pop("mean").numpy(), tensors.pop("projection").numpy()
    weights = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in tensors.items()}
    config = model_config(run)
    model = build(config)
    try:
        model.load_state_dict(current_parameters(run.model, weights))
    except RuntimeError as error:
        raise CorruptData(
            f"{weights_path(library, run.name)} has not the parameters of the model {run.model} of this "
            "version of songray: train it anew, under another name"
        ) from error
    return ModelEncoder(model.eval(), mean, projection, run.pooling, has_tags=bool(config.tags))
