"""Baseline: the encoder of another model with its initial weights."""

from __future__ import annotations

import torch

from songray.learning.models.base import Embedder
from songray.learning.models.cae import CAE
from songray.learning.models.contrastive import Contrastive
from songray.learning.models.options import CAEConfig, ContrastiveConfig, RandomConfig


class RandomEncoder(Embedder):
    """Measures how much of a result is due to the architecture rather than to training."""

    def __init__(self, config: RandomConfig) -> None:
        super().__init__()
        self.untrained = CAE(CAEConfig()) if config.encoder == "cae" else Contrastive(ContrastiveConfig())
        self.frames, self.dimension = self.untrained.frames, self.untrained.dimension
        self.scale = self.untrained.scale

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.untrained.embed(windows)
        return vectors
