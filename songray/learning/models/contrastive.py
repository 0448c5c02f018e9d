"""Ours: windows of one recording, each altered in its own way, must find each other among those of others.

The loss is NT-Xent (Chen et al., 2020, arXiv:2002.05709) with all windows of a recording as positives
(Khosla et al., 2020, arXiv:2004.11362): it may come several times in a batch, under several ids or because
the catalogue is small, and is no negative of itself. The encoder is a small ConvNeXt (Liu et al., 2022,
arXiv:2201.03545), of which all stages are heard (Lee and Nam, 2017, arXiv:1703.01793), each by mean and
deviation over time, as X-vectors are (Snyder et al., 2018): how a track moves tells it apart as much as its
colour does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed.nn
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder

BINS = 128
PATCH = 8  # frames and bins that the encoder takes as one: with 4, a step costs four times as much
DB = 80.0  # that 0…1 stands for
WARM_UP = 0.03  # share of the training


@dataclass(frozen=True)
class ContrastiveConfig:
    widths: tuple[int, ...] = (48, 96, 128)
    """Channels of the encoder's stages; from one to the next, time and frequency are halved."""
    blocks: int = 1
    """Residual blocks of each stage."""
    temperature: float = 0.2
    """Of the cosines: the lower, the more the nearest negatives count."""
    gain_db: float = 6.0
    """A window is made louder or softer by at most so much."""
    tilt_db: float = 2.0
    """Its highest bins are raised over its lowest, or lowered, by at most so much: another equaliser."""
    noise_db: float = 1.0
    """The largest deviation of noise on each number."""
    shift_bins: int = 3
    """It is moved up or down by at most so many bins: about another key."""
    masked_bins: int = 12
    """The widest band of frequencies that is silenced."""
    masked_frames: int = 24
    """The longest stretch of time that is silenced."""
    learning_rate: float = 2e-3
    """Of AdamW, after a short warm-up; then it falls along a cosine to zero."""
    weight_decay: float = 0.05
    """Of AdamW."""
    batch_size: int = 64
    """Windows a step, over all workers; two of each clip."""
    epochs: int = 40
    """Passes over the training tracks, each of which gives eight windows."""

    def build(self) -> Contrastive:
        return Contrastive(self)


class Contrastive(Embedder):
    """Learns what stays the same throughout a track, and differs between tracks."""

    frames = 216  # 5.0 s
    views = 2
    windows_per_clip = 8
    scale = "wccn"
    max_gradient_norm = 1.0

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        bands = [BINS // PATCH >> stage for stage in range(len(config.widths))]
        self.dimension = 2 * sum(width * count for width, count in zip(config.widths, bands, strict=True))
        self.stages = nn.ModuleList(_stages(config.widths, config.blocks))
        self.head = nn.Sequential(  # what it throws away to tell tracks apart, a vector keeps
            nn.Linear(self.dimension, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        windows = augmented(batch.windows, self.config) if self.training else batch.windows
        mine = functional.normalize(self.head(self.embed(windows)).float(), dim=1)
        vectors, recordings, first = of_all_workers(mine, batch.recordings)
        own = torch.arange(len(mine), device=mine.device) + first
        cosines = (mine @ vectors.T).scatter(1, own[:, None], -math.inf)  # (windows, windows of all)
        is_same = (batch.recordings[:, None] == recordings).scatter(1, own[:, None], False)
        chances = functional.log_softmax(cosines / self.config.temperature, dim=1)
        per_window = chances.masked_fill(~is_same, 0).sum(1) / is_same.sum(1).clamp_min(1)
        found = is_same.gather(1, cosines.argmax(1, keepdim=True)).float().mean()
        return {"loss": -per_window.mean(), "found": found}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        pictures = windows[:, None].contiguous(memory_format=torch.channels_last)
        found = []
        for stage in self.stages:
            pictures = stage(pictures)  # (batch, channels, time, frequency)
            # When it was heard tells nothing, how high it was does.
            found += [pictures.mean(2).flatten(1), deviation(pictures).flatten(1)]
        return torch.cat(found, dim=1)

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        decay = self.config.weight_decay
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=decay, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        return min(1.0, (progress + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2


def _stages(widths: tuple[int, ...], blocks: int) -> list[nn.Sequential]:
    ways = [nn.Conv2d(1, widths[0], PATCH, PATCH)]
    ways += [nn.Conv2d(narrow, wide, 2, 2) for narrow, wide in pairwise(widths)]
    return [
        nn.Sequential(way, nn.BatchNorm2d(width), *(Block(width) for _ in range(blocks)))
        for way, width in zip(ways, widths, strict=True)
    ]


def deviation(pictures: torch.Tensor) -> torch.Tensor:
    """Over time: (batch, channels, time, frequency) → (batch, channels, frequency)."""
    return (pictures.var(2, correction=0) + 1e-4).sqrt()  # nothing may move: the slope stays finite


class Block(nn.Module):
    """Looks around in each channel, then mixes the channels; adds what it found."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.found = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = pictures + self.found(pictures)
        return summed


def augmented(windows: torch.Tensor, config: ContrastiveConfig) -> torch.Tensor:
    """Each window as another recording, another room or another key could have made it; (batch, frames,
    bins), 0…1, drawn from torch's global generator."""
    count, frames, bins = windows.shape
    random = torch.rand(5, count, 1, 1, device=windows.device) * 2 - 1
    slope = torch.linspace(-0.5, 0.5, bins, device=windows.device)
    noise = torch.randn_like(windows) * (random[2].abs() * config.noise_db)
    altered = windows + (random[0] * config.gain_db + random[1] * config.tilt_db * slope + noise) / DB
    if config.shift_bins:
        altered = shifted(altered, (random[3] * (config.shift_bins + 0.5)).round().long())
    in_time = stretches(frames, count, config.masked_frames, windows.device)[:, :, None]
    in_frequency = stretches(bins, count, config.masked_bins, windows.device)[:, None]
    return altered.clamp(0, 1).masked_fill(in_time | in_frequency, 0)


def shifted(windows: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Each window moved by so many bins, (batch, 1, 1); its edge is repeated where nothing comes in."""
    bins = windows.shape[2]
    source = (torch.arange(bins, device=windows.device) - by).clamp(0, bins - 1)
    return windows.gather(2, source.expand(windows.shape))


def stretches(length: int, count: int, longest: int, device: torch.device) -> torch.Tensor:
    """For each of so many windows one stretch at random: (count, length), True inside."""
    sizes = torch.rand(count, 1, device=device) * longest
    starts = torch.rand(count, 1, device=device) * (length - sizes)
    places = torch.arange(length, device=device)
    return (places >= starts) & (places < starts + sizes)


def of_all_workers(vectors: torch.Tensor, recordings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The windows of all workers, through which gradients flow, and the place of the first of ours."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return vectors, recordings, 0
    gathered = torch.distributed.nn.functional.all_gather(vectors)  # type: ignore[no-untyped-call]
    names = [torch.empty_like(recordings) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(names, recordings)
    return torch.cat(gathered), torch.cat(names), torch.distributed.get_rank() * len(vectors)
