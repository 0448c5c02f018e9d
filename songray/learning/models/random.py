"""Baseline: the encoder of another model with its initial weights."""

from __future__ import annotations

import torch

from songray.learning.models.base import Embedder
from songray.learning.models.options import MODELS, RandomConfig


class RandomEncoder(Embedder):
    """Measures how much of a result is due to the architecture rather than to training."""

    def __init__(self, config: RandomConfig) -> None:
        super().__init__()
        self.untrained = MODELS[config.encoder]().build()
        self.frames, self.dimension = self.untrained.frames, self.untrained.dimension
        self.scale = self.untrained.scale

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.untrained.embed(windows)
        return vectors
