"""Convolutional autoencoder over time (Clothier and Benson, 2021)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import CAEConfig

BINS = 128
CHANNELS = (256, 256, 512)


class CAE(Embedder):
    """Encodes a window of 5.94 s as a latent vector and reconstructs the window from it."""

    frames = 256
    windows_per_clip = 4
    has_decoder = True

    def __init__(self, config: CAEConfig) -> None:
        super().__init__()
        self.dimension = config.latent
        flat = CHANNELS[-1] * self.frames // 8
        hidden = [config.dense_units] * config.dense_layers
        self.encoder = nn.Sequential(
            *_encoder_convolutions(),
            nn.Flatten(),
            *_dense([flat, *hidden]),
            nn.Linear(hidden[-1] if hidden else flat, config.latent),
        )
        self.decoder = nn.Sequential(
            *_dense([config.latent, *hidden[1:], flat]),
            nn.Unflatten(1, (CHANNELS[-1], self.frames // 8)),
            *_decoder_convolutions(),
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        loss = functional.mse_loss(self.reconstruct(batch.windows), batch.windows)
        return {"loss": loss, "squared_error": loss.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        latent: torch.Tensor = self.encoder(windows.transpose(1, 2))  # from (batch, bins, frames)
        return latent

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.decoder(self.embed(windows))  # (batch, bins, frames)
        return decoded.transpose(1, 2)


def _dense(units: list[int]) -> list[nn.Module]:
    return [layer for pair in pairwise(units) for layer in (nn.Linear(*pair), nn.ReLU())]


def _encoder_convolutions() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((BINS, *CHANNELS)):
        same = nn.ConstantPad1d((0, 1), 0.0)  # "same" padding for kernels of 2
        layers += [same, nn.Conv1d(inputs, outputs, 2), nn.ReLU(), nn.MaxPool1d(2)]
    return layers


def _decoder_convolutions() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((CHANNELS[-1], 512, 256, BINS)):
        same = nn.ConstantPad1d((0, -1), 0.0)
        layers += [nn.Upsample(scale_factor=2), nn.ConvTranspose1d(inputs, outputs, 2), same, nn.ReLU()]
    return layers[:-1]  # the last layer is linear
