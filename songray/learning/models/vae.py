"""Convolutional variational autoencoder (Kingma and Welling, 2014, arXiv:1312.6114).

The music recommender that uses it states neither its layers nor the size of its latent space. Here they are
the usual stack of strided convolutions, on windows of 128 frames × 128 bins.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import VAEConfig

CHANNELS = (1, 32, 64, 128, 256)  # 128 × 128 → 8 × 8
FLAT = CHANNELS[-1] * 8 * 8


class VAE(Embedder):
    """Encodes a window of 2.97 s as a normal distribution and reconstructs the window from a sample of it."""

    frames = 128
    has_decoder = True
    max_gradient_norm = 10.0  # the exponential of the variance can give very large gradients at first

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.latent
        self.encoder = nn.Sequential(*_encoder_layers(), nn.Flatten(), nn.Linear(FLAT, 2 * config.latent))
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, FLAT),
            nn.ReLU(),
            nn.Unflatten(1, (CHANNELS[-1], 8, 8)),
            *_decoder_layers(),
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        """The negative evidence lower bound per element of a window, without its constant term."""
        mean, log_variance = self.encoder(batch.windows[:, None]).chunk(2, dim=1)  # (batch, latent) each
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        decoded = self.decoder(mean + noise * (log_variance / 2).exp())[:, 0]  # (batch, frames, bins)
        squared_error = (decoded - batch.windows).square().mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        elements = batch.windows[0].numel()
        loss = squared_error / (2 * self.config.deviation**2) + self.config.beta * divergence / elements
        return {"loss": loss, "squared_error": squared_error, "divergence": divergence}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.encoder(windows[:, None])[:, : self.dimension]
        return mean

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        """From the mean of the distribution."""
        decoded: torch.Tensor = self.decoder(self.embed(windows))[:, 0]
        return decoded


def _encoder_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    return layers


def _decoder_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(reversed(CHANNELS)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    return [*layers[:-1], nn.Sigmoid()]
