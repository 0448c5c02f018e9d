"""InfoGAN (Chen et al., 2016, arXiv:1606.03657), whose network Q is the encoder.

The codes are those of the paper; the layers are the usual strided convolutions. Q has separate convolutions,
where the paper shares those of the discriminator, so that each optimizer group owns its parameters.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import InfoGANConfig

CHANNELS = (1, 32, 64, 128, 256)  # 128 × 128 → 8 × 8
FLAT = CHANNELS[-1] * 8 * 8


class InfoGAN(Embedder):
    """Trains a decoder of random codes against a discriminator, and Q to predict the codes."""

    frames = 128
    optimizer_groups = ("discriminator", "generator")
    validation_metric = None

    def __init__(self, config: InfoGANConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = config.categories + config.codes
        decoder = nn.Sequential(*_decoder_layers(config.noise + self.dimension))
        self.generator = nn.ModuleDict({"decoder": decoder, "q": nn.Sequential(*_layers(self.dimension))})
        self.discriminator = nn.Sequential(*_layers(1))

    def forward(self, batch: Batch, group: str = "generator") -> dict[str, torch.Tensor]:
        count, device = len(batch.windows), batch.windows.device
        category = torch.randint(self.config.categories, (count,), device=device)
        codes = torch.rand(count, self.config.codes, device=device) * 2 - 1
        noise = torch.randn(count, self.config.noise, device=device)
        one_hot = functional.one_hot(category, self.config.categories)
        decoded = self.generator["decoder"](torch.cat([noise, one_hot, codes], dim=1))
        fake = self.discriminator(decoded)[:, 0]
        if group == "discriminator":
            real = self.discriminator(batch.windows[:, None])[:, 0]
            loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
            return {"loss": loss, "discriminator_loss": loss.detach()}
        adversarial = functional.softplus(-fake).mean()
        predicted = self.generator["q"](decoded)  # (batch, categories + codes)
        information = functional.cross_entropy(predicted[:, : self.config.categories], category)
        information = information + functional.mse_loss(predicted[:, self.config.categories :], codes)
        loss = adversarial + self.config.information * information
        return {
            "loss": loss,
            "generator_loss": adversarial.detach(),
            "information_loss": information.detach(),
        }

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.generator["q"](windows[:, None])
        return vectors

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        weights = self.get_submodule(group).parameters()
        return torch.optim.Adam(weights, lr=learning_rate, betas=(0.5, 0.999), fused=True)


def _decoder_layers(inputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(inputs, FLAT), nn.Unflatten(1, (CHANNELS[-1], 8, 8))]
    for channels, outputs in pairwise(reversed(CHANNELS)):
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.ConvTranspose2d(channels, outputs, 4, 2, 1)]
    return [*layers, nn.Sigmoid()]


def _layers(outputs: int) -> list[nn.Module]:
    """The layers of Q and of the discriminator: (batch, 1, frames, bins) → (batch, outputs)."""
    layers: list[nn.Module] = []
    for inputs, channels in pairwise(CHANNELS):
        layers += [nn.Conv2d(inputs, channels, 4, 2, 1), nn.LeakyReLU(0.1)]
    return [*layers, nn.Flatten(), nn.Linear(FLAT, outputs)]
