"""Contrastive encoder: augmented windows of one recording are positives, all others in the batch negatives.

The loss is NT-Xent (Chen et al., 2020, arXiv:2002.05709) with all windows of a recording as positives
(Khosla et al., 2020, arXiv:2004.11362): a recording that is in a batch more than once, under several track
ids or because the catalogue is small, must not be a negative of itself. The encoder is a small ConvNeXt (Liu
et al., 2022, arXiv:2201.03545). A vector concatenates the features of all its stages (Lee and Nam, 2017,
arXiv:1703.01793), each with mean and standard deviation over time, the statistics pooling of x-vectors
(Snyder et al., 2018).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.distributed.nn
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.options import ContrastiveConfig

BINS = 128
PATCH = 8  # frames and bins of a patch; a step with patches of 4 takes four times as long
DECIBELS = 80.0  # range of a spectrogram, scaled to 0…1
WARM_UP = 0.03  # share of the training


class Contrastive(Embedder):
    """Learns what is invariant within a recording and differs between recordings."""

    frames = 216  # 5.0 s
    views = 2
    windows_per_clip = 8
    scale = "wccn"
    max_gradient_norm = 1.0

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.dimension = statistics_length(config.widths)
        self.stages = nn.ModuleList(stages(config.widths, config.blocks))
        self.head = nn.Sequential(  # projection head, for the loss alone
            nn.Linear(self.dimension, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)
        )

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        windows = augment(batch.windows, self.config) if self.training else batch.windows
        local = functional.normalize(self.head(self.embed(windows)).float(), dim=1)  # (windows, 64)
        vectors, recordings, offset = gather(local, batch.recordings)  # of all workers
        itself = torch.arange(len(local), device=local.device)[:, None] + offset
        cosines = (local @ vectors.T).scatter(1, itself, -math.inf)  # (windows, windows of all workers)
        positive = (batch.recordings[:, None] == recordings).scatter(1, itself, False)
        log_probabilities = functional.log_softmax(cosines / self.config.temperature, dim=1)
        likelihood = log_probabilities.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)
        accuracy = positive.gather(1, cosines.argmax(1, keepdim=True)).float().mean()
        return {"loss": -likelihood.mean(), "top1_accuracy": accuracy}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        return statistics_of(self.stages, windows)

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        decay = self.config.weight_decay
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=decay, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        return warm_up_and_decay(progress)


def warm_up_and_decay(progress: float) -> float:
    """Linear warm-up times cosine decay."""
    return min(1.0, (progress + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2


def statistics_length(widths: tuple[int, ...]) -> int:
    """The length of what `statistics_of` returns for stages of these widths."""
    bands = [BINS // PATCH >> stage for stage in range(len(widths))]
    return 2 * sum(width * count for width, count in zip(widths, bands, strict=True))


def statistics_of(stages: nn.ModuleList, windows: torch.Tensor) -> torch.Tensor:
    """The mean and the deviation over time of the features of all stages, (batch, frames, bins) → (batch,
    length)."""
    features = windows[:, None].contiguous(memory_format=torch.channels_last)
    statistics = []
    for stage in stages:
        features = stage(features)  # (batch, channels, time, frequency)
        # Pooled over time alone: a vector is invariant to time, and not to frequency.
        statistics += [features.mean(2).flatten(1), deviation(features).flatten(1)]
    return torch.cat(statistics, dim=1)


def stages(widths: tuple[int, ...], blocks: int) -> list[nn.Sequential]:
    downsampling = [nn.Conv2d(1, widths[0], PATCH, PATCH)]
    downsampling += [nn.Conv2d(narrow, wide, 2, 2) for narrow, wide in pairwise(widths)]
    return [
        nn.Sequential(convolution, nn.BatchNorm2d(width), *(Block(width) for _ in range(blocks)))
        for convolution, width in zip(downsampling, widths, strict=True)
    ]


class Block(nn.Module):
    """Residual block: a depthwise convolution, then two pointwise ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = features + self.residual(features)
        return added


def deviation(features: torch.Tensor) -> torch.Tensor:
    """Standard deviation over time: (batch, channels, time, frequency) → (batch, channels, frequency)."""
    return (features.var(2, correction=0) + 1e-4).sqrt()  # the constant bounds the gradient at zero


def augment(windows: torch.Tensor, config: ContrastiveConfig) -> torch.Tensor:
    """Random gain, tilt, noise, frequency shift and masks for each window, (batch, frames, bins) in 0…1.

    The randomness is from torch's global generator.
    """
    count, frames, bins = windows.shape
    random = torch.rand(5, count, 1, 1, device=windows.device) * 2 - 1
    slope = torch.linspace(-0.5, 0.5, bins, device=windows.device)
    noise = torch.randn_like(windows) * (random[2].abs() * config.noise_db)
    gain = random[0] * config.gain_db + random[1] * config.tilt_db * slope + noise
    augmented = windows + gain / DECIBELS
    if config.shift_bins:
        augmented = shift(augmented, (random[3] * (config.shift_bins + 0.5)).round().long())
    time_mask = random_spans(frames, count, config.masked_frames, windows.device)[:, :, None]
    frequency_mask = random_spans(bins, count, config.masked_bins, windows.device)[:, None]
    return augmented.clamp(0, 1).masked_fill(time_mask | frequency_mask, 0)


def shift(windows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Shift each window by its offset in bins, (batch, 1, 1); the edge bin is repeated."""
    bins = windows.shape[2]
    source = (torch.arange(bins, device=windows.device) - offsets).clamp(0, bins - 1)
    return windows.gather(2, source.expand(windows.shape))


def random_spans(length: int, count: int, longest: int, device: torch.device) -> torch.Tensor:
    """`count` masks with one random span each: (count, length), True inside the span."""
    sizes = torch.rand(count, 1, device=device) * longest
    starts = torch.rand(count, 1, device=device) * (length - sizes)
    positions = torch.arange(length, device=device)
    return (positions >= starts) & (positions < starts + sizes)


def gather(vectors: torch.Tensor, recordings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Vectors and recordings of all workers, with gradients, and the position of this worker's first."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return vectors, recordings, 0
    all_vectors = torch.distributed.nn.functional.all_gather(vectors)  # type: ignore[no-untyped-call]
    all_recordings = [torch.empty_like(recordings) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(all_recordings, recordings)
    return torch.cat(all_vectors), torch.cat(all_recordings), torch.distributed.get_rank() * len(vectors)
