"""What every model offers: how it turns windows of a spectrogram into vectors, and what it learns from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn


class Embedder(nn.Module):
    """A model, without Ray: it declares what it eats, owns its loss, and embeds.

    Windows are (batch, frames, bins), float in 0…1: the stored dB, scaled.
    """

    spec: str = "mel128"  # of SPECS
    frames: int | None  # of a window; None takes the whole clip as one window
    dimension: int  # of a vector
    unlike_units: bool = False  # the numbers of a vector are of different kinds: each is standardised,
    # else their principal components are

    def forward(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """`loss` to go down, and what else is worth a curve; DDP watches this call."""
        raise TypeError(f"{type(self).__name__} is not trained")

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """(batch, frames, bins) → (batch, dimension)"""
        raise NotImplementedError


class ModelConfig(Protocol):
    """A frozen dataclass of a model's options, beside the model."""

    def build(self) -> Embedder:
        """The model with fresh weights, drawn from torch's global generator."""


@runtime_checkable
class LearningConfig(ModelConfig, Protocol):
    """Of a model that learns: the schedule that was published for it."""

    learning_rate: float
    batch_size: int  # windows, over all workers
    epochs: int
