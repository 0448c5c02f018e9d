"""Dual-axis autoencoder, over time and over frequency, and the plain one of its comparison."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import DualAxisConfig

BINS = 128
CHANNELS = (32, 64, 128, 256)


class DualAxis(Embedder):
    """Encodes a square window along time and along frequency, and reconstructs it from both."""

    spec = "mel128-8k"
    frames = 128
    hop = 37  # 32 windows in a clip of 30 s
    has_decoder = True

    def __init__(self, config: DualAxisConfig) -> None:
        super().__init__()
        self.dimension = config.latent
        dual = config.encoder == "dual"
        self.encoder = DualEncoder(config.latent) if dual else plain_encoder(config.latent)
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, 256 * 8 * 8), nn.Unflatten(1, (256, 8, 8)), *_decoder_layers()
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        loss = functional.mse_loss(self.reconstruct(batch.windows), batch.windows)
        return {"loss": loss, "squared_error": loss.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.encoder(windows)
        return vectors

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.decoder(self.embed(windows))[:, 0]
        return decoded


class DualEncoder(nn.Module):
    """Concatenates the vectors of two branches of 1-D convolutions."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.over_time = _branch(latent // 2)
        self.over_frequency = _branch(latent - latent // 2)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        both = self.over_time(windows.transpose(1, 2)), self.over_frequency(windows)
        return torch.cat(both, dim=1)


def _branch(latent: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((BINS, *CHANNELS)):
        layers += [nn.Conv1d(inputs, outputs, 5, 2, 2), nn.ReLU(), nn.BatchNorm1d(outputs)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * 8, latent))


def plain_encoder(latent: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, -1))]
    for inputs, outputs in pairwise((1, *CHANNELS)):
        layers += [nn.Conv2d(inputs, outputs, 5, 2, 2), nn.ReLU(), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * 8 * 8, latent))


def _decoder_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((256, 256, 128, 64, 32)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, 1), nn.ReLU(), nn.BatchNorm2d(outputs)]
    return [*layers, nn.Conv2d(32, 1, 5, padding=2), nn.Sigmoid()]
