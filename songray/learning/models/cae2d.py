"""Two-dimensional convolutional autoencoders on windows of 5 s, in the three sizes of "SongNet"."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import CAE2DConfig

BINS, FRAMES = 96, 216
SIZES = {  # (filters, pooling) of each layer
    "A": ((48, 2), (24, 2), (12, 2)),  # latent: 12 × 27 × 12
    "B": ((96, 2), (14, 2)),  # 24 × 54 × 14
    "C": ((48, 2), (24, 2), (12, 2), (5, 3)),  # 4 × 9 × 5
}


class CAE2D(Embedder):
    """Encodes a window, scaled to its own range, as a small feature map and reconstructs the window."""

    spec = "mel96"
    frames = FRAMES
    has_decoder = True

    def __init__(self, config: CAE2DConfig) -> None:
        super().__init__()
        layers = SIZES[config.size]
        filters, pools = [count for count, _ in layers], [pool for _, pool in layers]
        self.dimension = filters[-1] * BINS * FRAMES // math.prod(pools) ** 2
        self.encoder = nn.Sequential(*_encoder_layers(filters, pools))
        self.decoder = nn.Sequential(*_decoder_layers(filters, pools))

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        inputs = scale_to_range(batch.windows)[:, None]  # (batch, 1, frames, bins)
        loss = functional.mse_loss(self.decoder(self.encoder(inputs)), inputs)
        return {"loss": loss, "squared_error": loss.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.encoder(scale_to_range(windows)[:, None]).flatten(1)
        return vectors

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        """In the range of each window."""
        low, span = range_of(windows)
        decoded: torch.Tensor = self.decoder(self.encoder(scale_to_range(windows)[:, None]))
        return decoded[:, 0] * span + low


def scale_to_range(windows: torch.Tensor) -> torch.Tensor:
    """Scale the minimum and maximum of each window to 0 and 1."""
    low, span = range_of(windows)
    return (windows - low) / span


def range_of(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum of each window and the difference of its maximum from it, (batch, 1, 1) each."""
    low, high = windows.amin((1, 2), keepdim=True), windows.amax((1, 2), keepdim=True)
    return low, (high - low).clamp_min(1e-3)


def _encoder_layers(filters: list[int], pools: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (inputs, outputs), pool in zip(pairwise((1, *filters)), pools, strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(pool)]
    return layers


def _decoder_layers(filters: list[int], pools: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    backwards = [filters[-1], *reversed(filters)]
    for (inputs, outputs), pool in zip(pairwise(backwards), reversed(pools), strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=pool)]
    return [*layers, nn.Conv2d(filters[0], 1, 3, padding=1), nn.Sigmoid()]
