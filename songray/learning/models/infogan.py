"""InfoGAN (Chen et al., 2016, arXiv:1606.03657): its encoder Q embeds.

The layers are the usual stack, the codes of the paper's kinds. Q has
convolutions of its own where the paper lets it share the discriminator's, so that each player owns its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder

CHANNELS = (1, 32, 64, 128, 256)  # 128 × 128 → 8 × 8
FLAT = CHANNELS[-1] * 8 * 8


@dataclass(frozen=True)
class InfoGANConfig:
    categories: int = 10
    """Values of the one code that chooses among kinds of music."""
    codes: int = 54
    """Continuous codes; with the categories, the length of a vector."""
    noise: int = 62
    """Numbers that a drawn window depends on beside its codes."""
    information: float = 1.0
    """Weight of the codes that Q must find again in what was drawn."""
    learning_rate: float = 2e-4
    """Of Adam, with the moments 0.5 and 0.999."""
    batch_size: int = 32
    """Windows a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, each of which gives four windows."""

    def build(self) -> InfoGAN:
        return InfoGAN(self)


class InfoGAN(Embedder):
    """A generator draws windows that a discriminator must take for real, and whose codes Q must read."""

    frames = 128
    optimizer_groups = ("discriminator", "generator")
    validation_metric = None

    def __init__(self, config: InfoGANConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.categories + config.codes
        drawing = nn.Sequential(*_drawing(config.noise + self.dimension))
        self.generator = nn.ModuleDict({"drawing": drawing, "q": nn.Sequential(*_seeing(self.dimension))})
        self.discriminator = nn.Sequential(*_seeing(1))

    def forward(self, batch: Batch, group: str = "generator") -> dict[str, torch.Tensor]:
        count, device = len(batch.windows), batch.windows.device
        category = torch.randint(self.config.categories, (count,), device=device)
        codes = torch.rand(count, self.config.codes, device=device) * 2 - 1
        noise = torch.randn(count, self.config.noise, device=device)
        chosen = functional.one_hot(category, self.config.categories)
        drawn = self.generator["drawing"](torch.cat([noise, chosen, codes], dim=1))
        fake = self.discriminator(drawn)[:, 0]
        if group == "discriminator":
            real = self.discriminator(batch.windows[:, None])[:, 0]
            loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
            return {"loss": loss, "discriminator_loss": loss.detach()}
        deceit = functional.softplus(-fake).mean()
        read = self.generator["q"](drawn)
        lost = functional.cross_entropy(read[:, : self.config.categories], category)
        lost = lost + functional.mse_loss(read[:, self.config.categories :], codes)
        loss = deceit + self.config.information * lost
        return {"loss": loss, "generator_loss": deceit.detach(), "information_lost": lost.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        read: torch.Tensor = self.generator["q"](windows[:, None])
        return read

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        weights = self.get_submodule(group).parameters()
        return torch.optim.Adam(weights, lr=learning_rate, betas=(0.5, 0.999), fused=True)


def _drawing(numbers: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(numbers, FLAT), nn.Unflatten(1, (CHANNELS[-1], 8, 8))]
    for inputs, outputs in pairwise(reversed(CHANNELS)):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
    return [*layers, nn.Sigmoid()]


def _seeing(numbers: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.1)]
    return [*layers, nn.Flatten(), nn.Linear(FLAT, numbers)]
