"""Adversarially learned inference (Dumoulin et al., 2017, arXiv:1606.00704), "song2vec".

The losses are the paper's, of least squares. The paper does not state its layers; here they are the usual
strided convolutions. Its measures for convergence are options that can be disabled.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import ALIConfig

FRAMES, BINS = 430, 257
DECIBELS = 80.0  # range of a spectrogram, scaled to 0…1


class ALI(Embedder):
    """Trains an encoder and a decoder against a discriminator, which distinguishes pairs of a window and its
    encoding from pairs of a decoded window and its latent vector."""

    spec = "linear257"
    frames = FRAMES
    windows_per_clip = 10
    has_decoder = True
    validation_metric = None  # adversarial losses do not measure quality

    def __init__(self, config: ALIConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.latent
        self.optimizer_groups = ("generator",) * config.generator_steps + ("discriminator",)
        channels = (1, *(config.width * factor for factor in (1, 2, 4, 8, 8)))  # 430 × 257 → 13 × 8
        parts = {"encoder": encoder(channels, config.latent), "decoder": decoder(channels, config.latent)}
        self.generator = nn.ModuleDict(parts)
        self.discriminator = Discriminator(channels, config.latent)

    def forward(self, batch: Batch, group: str = "generator") -> dict[str, torch.Tensor]:
        prior = torch.randn(len(batch.windows), self.dimension, device=batch.windows.device)
        vectors = self.embed(batch.windows)
        decoded = self.decode(prior)
        real = self.discriminator(self._add_noise(batch.windows), vectors)  # (batch,)
        fake = self.discriminator(self._add_noise(decoded), prior)
        if group == "discriminator":
            loss = real.square().mean() + (fake - self._positive_labels(fake)).square().mean()
            losses = {"loss": loss + self.config.kernel_penalty * self.discriminator.squared_kernels()}
        else:
            losses = {"loss": (real - self._positive_labels(real)).square().mean() + fake.square().mean()}
        losses |= {f"{group}_loss": losses["loss"].detach()}
        if not self.training:
            losses["squared_error"] = (self.decode(vectors) - batch.windows).square().mean()
        return losses

    def _add_noise(self, windows: torch.Tensor) -> torch.Tensor:
        deviation = self.config.noise_variance**0.5 / DECIBELS
        return windows + deviation * torch.randn_like(windows) if deviation else windows

    def _positive_labels(self, scores: torch.Tensor) -> torch.Tensor:
        smooth = self.config.smooth_labels
        return torch.empty_like(scores).uniform_(0.7, 0.9) if smooth else torch.ones_like(scores)

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.generator["encoder"](windows[:, None])
        return vectors

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(batch, latent) → (batch, frames, bins)"""
        windows: torch.Tensor = self.generator["decoder"](vectors)[:, 0, :FRAMES, :BINS]
        return windows

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        return self.decode(self.embed(windows))

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        weights = self.get_submodule(group).parameters()
        return torch.optim.Adam(weights, lr=learning_rate, betas=(0.5, 0.999), fused=True)


def encoder(channels: tuple[int, ...], latent: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 13 * 8, latent))


def decoder(channels: tuple[int, ...], latent: int) -> nn.Sequential:
    """(batch, latent) → (batch, 1, 448, 288), to be cropped to a window."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(reversed(channels)):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
    start = [nn.Linear(latent, channels[-1] * 14 * 9), nn.Unflatten(1, (channels[-1], 14, 9))]
    return nn.Sequential(*start, *layers, nn.Sigmoid())


class Discriminator(nn.Module):
    """Scores pairs of a window and a vector: high for the decoder's, unbounded."""

    def __init__(self, channels: tuple[int, ...], latent: int, units: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.window_encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 13 * 8, units))
        self.vector_encoder = nn.Linear(latent, units)
        self.classifier = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Linear(2 * units, units), nn.LeakyReLU(0.2), nn.Linear(units, 1)
        )

    def forward(self, windows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """(batch, frames, bins), (batch, latent) → (batch,)"""
        pair = torch.cat([self.window_encoder(windows[:, None]), self.vector_encoder(vectors)], dim=1)
        scores: torch.Tensor = self.classifier(pair)[:, 0]
        return scores

    def squared_kernels(self) -> torch.Tensor:
        """The sum of the squared weights, without biases."""
        kernels = [weights for weights in self.parameters() if weights.dim() > 1]
        return torch.stack([kernel.square().sum() for kernel in kernels]).sum()
