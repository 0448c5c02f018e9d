"""Baseline: the encoder of another model with the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from songray.learning.models.base import Embedder
from songray.learning.models.cae import CAEConfig
from songray.learning.models.contrastive import ContrastiveConfig

ENCODERS = {"cae": CAEConfig, "contrastive": ContrastiveConfig}


@dataclass(frozen=True)
class RandomConfig:
    encoder: Literal["cae", "contrastive"] = "contrastive"
    """Of which model."""

    def build(self) -> RandomEncoder:
        return RandomEncoder(self)


class RandomEncoder(Embedder):
    """Shows how much of a result comes from the architecture, before anything is learned."""

    def __init__(self, config: RandomConfig) -> None:
        super().__init__()
        self.untrained = ENCODERS[config.encoder]().build()
        self.frames, self.dimension = self.untrained.frames, self.untrained.dimension
        self.scale = self.untrained.scale

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.untrained.embed(windows)
        return vectors
