"""Baseline without learning: the window itself, flattened."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from songray.learning.models.base import Embedder

BINS = 128


@dataclass(frozen=True)
class RawConfig:
    frames: int = 216
    """Of a window: 5 s."""

    def build(self) -> Raw:
        return Raw(self)


class Raw(Embedder):
    """What a comparison of pictures, bin by bin, would find: long vectors, for comparison only."""

    scale = "centre"

    def __init__(self, config: RawConfig) -> None:
        super().__init__()
        self.frames = config.frames
        self.dimension = config.frames * BINS

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.flatten(1)
