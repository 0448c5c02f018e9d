"""Baseline without training: the flattened window."""

from __future__ import annotations

import torch

from songray.learning.models.base import Embedder
from songray.learning.models.options import RawConfig

BINS = 128


class Raw(Embedder):
    """Compares spectrograms element by element. The vectors are long: for evaluation only."""

    scale = "centre"

    def __init__(self, config: RawConfig) -> None:
        super().__init__()
        self.frames = config.frames
        self.dimension = config.frames * BINS

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.flatten(1)
