"""Hears what listeners think alike: collaborative factors of a track, predicted from its sound.

The network is that of van den Oord, Dieleman and Schrauwen (2013), in the form of Dieleman's later post
"Recommending music on Spotify with deep learning" (2014); the loss by cosine is that of Deej-AI.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder

BINS = 128
CHANNELS = (256, 256, 512)


@dataclass(frozen=True)
class FactorsConfig:
    teacher: Literal["als", "item2vec"] = "als"
    """The factors to hear: jobs/factorize.py writes them."""
    factors: int = 64
    """How many there are of a track: the length of a vector."""
    loss: Literal["cosine", "squared"] = "cosine"
    """Between predicted and true factors."""
    dense_units: int = 2048
    """Units of each of the two hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch_size: int = 32
    """Windows a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, each of which gives four windows."""

    def build(self) -> Factors:
        return Factors(self)


class Factors(Embedder):
    """Convolutions over time, three statistics of what they find, and a dense network."""

    frames = 216  # 5.0 s

    def __init__(self, config: FactorsConfig) -> None:
        super().__init__()
        self.config = config
        self.target = f"factors/{config.teacher}"
        self.dimension = config.factors
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((BINS, *CHANNELS)):
            layers += [nn.Conv1d(inputs, outputs, 4, padding=2), nn.ReLU(), nn.MaxPool1d(2)]
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Linear(3 * CHANNELS[-1], config.dense_units),
            nn.ReLU(),
            nn.Linear(config.dense_units, config.dense_units),
            nn.ReLU(),
            nn.Linear(config.dense_units, config.factors),
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        assert batch.targets is not None
        heard = self.embed(batch.windows)
        cosine = functional.cosine_similarity(heard, batch.targets).mean()
        by_cosine = self.config.loss == "cosine"
        loss = 1 - cosine if by_cosine else functional.mse_loss(heard, batch.targets)
        return {"loss": loss, "cosine": cosine.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        found = self.convolutions(windows.transpose(1, 2))  # (batch, channels, time)
        size = found.square().mean(2).add(1e-12).sqrt()
        vectors: torch.Tensor = self.dense(torch.cat([found.mean(2), found.amax(2), size], dim=1))
        return vectors
