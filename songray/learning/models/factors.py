"""Regression of collaborative filtering factors of a track from its audio.

The network is that of van den Oord, Dieleman and Schrauwen (2013), in the form of Dieleman's post
"Recommending music on Spotify with deep learning" (2014); the cosine loss is that of Deej-AI.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import FactorsConfig

BINS = 128
CHANNELS = (256, 256, 512)


class Factors(Embedder):
    """Convolutions over time, global pooling by three statistics, and dense layers."""

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
        predicted = self.embed(batch.windows)  # (batch, factors)
        cosine = functional.cosine_similarity(predicted, batch.targets).mean()
        by_cosine = self.config.loss == "cosine"
        loss = 1 - cosine if by_cosine else functional.mse_loss(predicted, batch.targets)
        return {"loss": loss, "cosine": cosine.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        features = self.convolutions(windows.transpose(1, 2))  # (batch, channels, time)
        rms = features.square().mean(2).add(1e-12).sqrt()
        pooled = torch.cat([features.mean(2), features.amax(2), rms], dim=1)  # (batch, 3 × channels)
        vectors: torch.Tensor = self.dense(pooled)
        return vectors
