"""Convolutional variational autoencoder (Kingma and Welling, 2014, arXiv:1312.6114).

The music recommender that it is taken from states neither layers nor the size of the latent space: these are
ours, the usual stack of strided convolutions on a square of 128 frames × 128 bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from songray.learning.models.base import Batch, Embedder

CHANNELS = (1, 32, 64, 128, 256)  # 128 × 128 → 8 × 8
FLAT = CHANNELS[-1] * 8 * 8


@dataclass(frozen=True)
class VAEConfig:
    latent: int = 64
    """Length of a vector."""
    beta: float = 1.0
    """Weight of the KL divergence from N(0, I) beside the likelihood of a window's numbers."""
    deviation: float = 0.1
    """Of the normal distribution around each drawn number, 0…1: 8 dB."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch_size: int = 32
    """Windows a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, each of which gives four windows."""

    def build(self) -> VAE:
        return VAE(self)


class VAE(Embedder):
    """Each 2.97-s window becomes a cloud of vectors, from any of which it must be drawn again."""

    frames = 128
    max_gradient_norm = 10.0  # the exponential of the spread can make a first step very long

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.latent
        self.encoder = nn.Sequential(*_downwards(), nn.Flatten(), nn.Linear(FLAT, 2 * config.latent))
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, FLAT), nn.ReLU(), nn.Unflatten(1, (CHANNELS[-1], 8, 8)), *_upwards()
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        """The negative evidence lower bound a number of the window, but for a constant."""
        mean, log_variance = self.encoder(batch.windows[:, None]).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        drawn = self.decoder(mean + noise * (log_variance / 2).exp())[:, 0]
        squared_error = (drawn - batch.windows).square().mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        pixels = batch.windows[0].numel()
        loss = squared_error / (2 * self.config.deviation**2) + self.config.beta * divergence / pixels
        return {"loss": loss, "squared_error": squared_error, "divergence": divergence}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.encoder(windows[:, None])[:, : self.dimension]
        return mean


def _downwards() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    return layers


def _upwards() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(reversed(CHANNELS)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    return [*layers[:-1], nn.Sigmoid()]
