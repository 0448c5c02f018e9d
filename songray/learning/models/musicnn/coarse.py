"""The features of musicnn from a coarser spectrogram: means of two frames and three bands.

The first layers have a thirtieth of the multiplications of musicnn's. The kernels are those of musicnn,
summed over the frames and bands that have one mean, and trained from there.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from songray.audio.spectrograms import SPECS
from songray.learning.models.musicnn.network import (
    MIDDLE,
    MIDDLE_FRAMES,
    MIDDLE_LAYERS,
    TEMPORAL,
    TIMBRAL,
    TIMBRAL_FRAMES,
    Affine,
    Layer,
    Musicnn,
    pooled_layers,
    temporal,
    timbral,
)

MEAN_FRAMES, MEAN_BINS = 2, 3  # of one mean
CHANNELS = sum(TIMBRAL.values()) + sum(TEMPORAL.values())
FEATURES = 2 * (CHANNELS + MIDDLE * MIDDLE_LAYERS)


class Coarse(nn.Module):
    """(batch, frames, 96 bins), 0…1 → (batch, FEATURES): of each channel of each layer the maximum and the
    mean over time."""

    def __init__(self) -> None:
        super().__init__()
        taps, middle = blocks(TIMBRAL_FRAMES, MEAN_FRAMES), blocks(MIDDLE_FRAMES, MEAN_FRAMES)
        widths = [CHANNELS] + [MIDDLE] * (MIDDLE_LAYERS - 1)
        self.input = Affine(1)
        self.timbral = nn.ModuleList(
            Layer(filters, taps, blocks(bins, MEAN_BINS)) for bins, filters in TIMBRAL.items()
        )
        self.temporal = nn.ModuleList(
            Layer(filters, blocks(frames, MEAN_FRAMES)) for frames, filters in TEMPORAL.items()
        )
        self.middle = nn.ModuleList(Layer(MIDDLE, middle, width) for width in widths)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        means = functional.avg_pool2d(windows[:, None], (MEAN_FRAMES, MEAN_BINS))[:, 0]
        levels = self.input(means)
        kind = product_type(levels)
        first = []
        for layer in [*_layers(self.timbral), *_layers(self.temporal)]:
            kernel = layer.signed_kernel()
            convolve = timbral if kernel.dim() == 3 else temporal
            first.append(layer(convolve(levels.to(kind), kernel.to(kind)).to(levels.dtype)))
        return pooled_layers(torch.cat(first, 2), self.middle)

    @torch.no_grad()
    def start_from(self, whole: Musicnn) -> None:
        """Take the layers of musicnn."""
        low, high = SPECS[whole.spec].range
        self.input.factor.copy_((high - low) * whole.input.factor)
        self.input.offset.copy_(low * whole.input.factor + whole.input.offset)
        for own, others in (
            (self.timbral, whole.timbral),
            (self.temporal, whole.temporal),
            (self.middle, whole.middle),
        ):
            for layer, other in zip(_layers(own), _layers(others), strict=True):
                layer.load_state_dict(other.state_dict() | {"kernel": block_sums(other.kernel, layer.kernel)})


def product_type(levels: torch.Tensor) -> torch.dtype:
    """The type of the factors of the first layers: bfloat16 on a CPU that multiplies it faster. Vectors of
    such CPUs and others have a cosine of at least 0.999."""
    has_products = levels.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_faster = has_products and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if is_faster else levels.dtype


def _layers(modules: nn.ModuleList) -> list[Layer]:
    return [module for module in modules if isinstance(module, Layer)]


def blocks(length: int, size: int) -> int:
    return -(-length // size)


def block_sums(kernel: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """A kernel, (filters, frames, …), summed over blocks of frames, and of bins where the coarse one has
    fewer: what it gives for values that are equal within each block."""
    for dim, size in ((1, MEAN_FRAMES), (2, MEAN_BINS)):
        if dim < kernel.dim() and kernel.shape[dim] > coarse.shape[dim]:
            padding = [0, 0] * (kernel.dim() - 1 - dim) + [0, coarse.shape[dim] * size - kernel.shape[dim]]
            padded = functional.pad(kernel, padding)
            kernel = padded.view(*padded.shape[:dim], -1, size, *padded.shape[dim + 1 :]).sum(dim + 1)
    return kernel
