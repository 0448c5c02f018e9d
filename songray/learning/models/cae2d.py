"""Convolutional autoencoders on pictures of 5 s, in three sizes, as "SongNet" has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder

BINS, FRAMES = 96, 216
SIZES = {  # filters and pooling of each layer
    "A": ((48, 2), (24, 2), (12, 2)),  # 12 × 27 × 12
    "B": ((96, 2), (14, 2)),  # 24 × 54 × 14
    "C": ((48, 2), (24, 2), (12, 2), (5, 3)),  # 4 × 9 × 5
}


@dataclass(frozen=True)
class CAE2DConfig:
    size: Literal["A", "B", "C"] = "C"
    """Of the latent picture: 3888, 18144 or 180 numbers. The second is nearly as large as a window: it
    draws well, and says little."""
    learning_rate: float = 5e-4
    """Of Adam."""
    batch_size: int = 5
    """Windows a step, over all workers."""
    epochs: int = 125
    """Passes over the training tracks, each of which gives four windows."""

    def build(self) -> CAE2D:
        return CAE2D(self)


class CAE2D(Embedder):
    """A window, scaled to 0…1 by its own extremes, shrinks to a small picture and is drawn again."""

    spec = "mel96"
    frames = FRAMES

    def __init__(self, config: CAE2DConfig) -> None:
        super().__init__()
        layers = SIZES[config.size]
        filters, pools = [count for count, _ in layers], [pool for _, pool in layers]
        self.dimension = filters[-1] * BINS * FRAMES // math.prod(pools) ** 2
        self.encoder = nn.Sequential(*_downwards(filters, pools))
        self.decoder = nn.Sequential(*_upwards(filters, pools))

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        pictures = stretched(batch.windows)[:, None]
        loss = functional.mse_loss(self.decoder(self.encoder(pictures)), pictures)
        return {"loss": loss, "squared_error": loss.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.encoder(stretched(windows)[:, None]).flatten(1)
        return vectors


def stretched(windows: torch.Tensor) -> torch.Tensor:
    """Each window's own range → 0…1."""
    low, high = windows.amin((1, 2), keepdim=True), windows.amax((1, 2), keepdim=True)
    return (windows - low) / (high - low).clamp_min(1e-3)


def _downwards(filters: list[int], pools: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (inputs, outputs), pool in zip(pairwise((1, *filters)), pools, strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(pool)]
    return layers


def _upwards(filters: list[int], pools: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    backwards = [filters[-1], *reversed(filters)]
    for (inputs, outputs), pool in zip(pairwise(backwards), reversed(pools), strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=pool)]
    return [*layers, nn.Conv2d(filters[0], 1, 3, padding=1), nn.Sigmoid()]
