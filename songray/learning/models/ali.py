"""Adversarially learned inference, "song2vec" (Dumoulin et al., 2017, arXiv:1606.00704).

The paper's losses are of least squares. Its stacks are not stated: ours are those usual for strided
convolutions. Each of the tricks that made it converge can be switched off.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from songray.learning.models.base import Batch, Embedder

FRAMES, BINS = 430, 257
DB = 80.0  # that 0…1 stands for


@dataclass(frozen=True)
class ALIConfig:
    latent: int = 64
    """Length of a vector."""
    width: int = 32
    """Channels of the convolutions that see most; the deepest have eight times as many."""
    generator_turns: int = 4
    """Steps of encoder and decoder for each one of the discriminator; 1 switches the trick off."""
    kernel_penalty: float = 1e-4
    """Weight of the squared kernels in the discriminator's loss; 0 switches the trick off."""
    smooth_labels: bool = True
    """Draw positive labels from 0.7…0.9; else they are 1."""
    noise_variance: float = 10.0
    """In dB², of the noise on spectrograms that the discriminator sees; 0 switches the trick off."""
    learning_rate: float = 2e-4
    """Of Adam, with the moments 0.5 and 0.999 that are usual for adversaries."""
    batch_size: int = 32
    """Windows a step, over all workers."""
    epochs: int = 20
    """Passes over the training tracks, each of which gives ten windows."""

    def build(self) -> ALI:
        return ALI(self)


class ALI(Embedder):
    """An encoder and a decoder play together against a discriminator, which must tell pairs of a real
    window and its vector from pairs of a drawn window and the vector that it was drawn from."""

    spec = "linear257"
    frames = FRAMES
    windows_per_clip = 10
    validation_metric = None  # the losses of adversaries tell balance, not quality

    def __init__(self, config: ALIConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.latent
        self.optimizer_groups = ("generator",) * config.generator_turns + ("discriminator",)
        channels = (1, *(config.width * factor for factor in (1, 2, 4, 8, 8)))  # 430 × 257 → 13 × 8
        parts = {"encoder": encoder(channels, config.latent), "decoder": decoder(channels, config.latent)}
        self.generator = nn.ModuleDict(parts)
        self.discriminator = Discriminator(channels, config.latent)

    def forward(self, batch: Batch, group: str = "generator") -> dict[str, torch.Tensor]:
        prior = torch.randn(len(batch.windows), self.dimension, device=batch.windows.device)
        vectors = self.embed(batch.windows)
        drawn = self.decode(prior)
        real = self.discriminator(self._noisy(batch.windows), vectors)
        fake = self.discriminator(self._noisy(drawn), prior)
        if group == "discriminator":
            loss = real.square().mean() + (fake - self._positive(fake)).square().mean()
            losses = {"loss": loss + self.config.kernel_penalty * self.discriminator.squared_kernels()}
        else:
            losses = {"loss": (real - self._positive(real)).square().mean() + fake.square().mean()}
        losses |= {f"{group}_loss": losses["loss"].detach()}
        if not self.training:
            losses["squared_error"] = (self.decode(vectors) - batch.windows).square().mean()
        return losses

    def _noisy(self, windows: torch.Tensor) -> torch.Tensor:
        deviation = self.config.noise_variance**0.5 / DB
        return windows + deviation * torch.randn_like(windows) if deviation else windows

    def _positive(self, judged: torch.Tensor) -> torch.Tensor:
        smooth = self.config.smooth_labels
        return torch.empty_like(judged).uniform_(0.7, 0.9) if smooth else torch.ones_like(judged)

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.generator["encoder"](windows[:, None])
        return vectors

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(batch, latent) → (batch, frames, bins)"""
        drawn: torch.Tensor = self.generator["decoder"](vectors)[:, 0, :FRAMES, :BINS]
        return drawn

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        weights = self.get_submodule(group).parameters()
        return torch.optim.Adam(weights, lr=learning_rate, betas=(0.5, 0.999), fused=True)


def encoder(channels: tuple[int, ...], latent: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 13 * 8, latent))


def decoder(channels: tuple[int, ...], latent: int) -> nn.Sequential:
    """(batch, latent) → (batch, 1, 448, 288), from which a window is cut."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(reversed(channels)):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
    start = [nn.Linear(latent, channels[-1] * 14 * 9), nn.Unflatten(1, (channels[-1], 14, 9))]
    return nn.Sequential(*start, *layers, nn.Sigmoid())


class Discriminator(nn.Module):
    """How much a pair of window and vector looks as if drawn by the decoder: a number without bounds."""

    def __init__(self, channels: tuple[int, ...], latent: int, units: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.sees = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 13 * 8, units))
        self.knows = nn.Linear(latent, units)
        self.judges = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Linear(2 * units, units), nn.LeakyReLU(0.2), nn.Linear(units, 1)
        )

    def forward(self, windows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        pair = torch.cat([self.sees(windows[:, None]), self.knows(vectors)], dim=1)
        judged: torch.Tensor = self.judges(pair)[:, 0]
        return judged

    def squared_kernels(self) -> torch.Tensor:
        kernels = [weights for weights in self.parameters() if weights.dim() > 1]
        return torch.stack([kernel.square().sum() for kernel in kernels]).sum()
