"""Baseline: the encoder of the CAE with the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from songray.models.base import Embedder
from songray.models.cae import CAE, CAEConfig


@dataclass(frozen=True)
class RandomConfig:
    latent: int = 256
    """Length of a vector."""

    def build(self) -> RandomEncoder:
        return RandomEncoder(self)


class RandomEncoder(Embedder):
    """Shows how much of a result comes from the architecture, before anything is learned."""

    frames = CAE.frames

    def __init__(self, config: RandomConfig) -> None:
        super().__init__()
        self.dimension = config.latent
        self.untrained = CAE(CAEConfig(latent=config.latent)).encoder

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.untrained(windows.transpose(1, 2))
        return vectors
