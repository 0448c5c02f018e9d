"""musicnn (Pons and Serra, 2019, arXiv:1909.06654), trained to predict tags.

The convolutions of its first layers are nine tenths of its arithmetic. They are computed as products of
matrices, of which each gives several neighbouring positions, and the maximum over frequency that follows them
is taken at once. On a CPU this is three times as fast as torch's convolutions of one channel, and equal to
them but for rounding; `bfloat16_products` doubles the speed again where the processor supports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from songray.audio.spectrograms import SPECS
from songray.learning.models.base import Embedder
from songray.learning.models.pretrained import MusicnnConfig

FRAMES, BINS = 187, 96  # of a window
TIMBRAL, TIMBRAL_FRAMES = {38: 204, 67: 204}, 7  # kernels over bands: bins → filters
TEMPORAL = {128: 51, 64: 51, 32: 51}  # kernels over time: frames → filters
MIDDLE, MIDDLE_FRAMES, MIDDLE_LAYERS = 64, 7, 3
TAGS = 50
# Positions of a kernel that one product gives, by its bins or frames: the fastest, measured
POSITIONS = {38: 4, 67: 3, 13: 4, 23: 3, 128: 8, 64: 8, 32: 8, 16: 8}
TILE = 32  # factors in bfloat16 are multiplied fastest where they are a multiple of this long


class Musicnn(Embedder):
    """The layer before the tags, whose 200 numbers are the vector of a window."""

    spec = "mel96-16k"
    frames = FRAMES  # 3.0 s
    batch_windows = 5  # half those of a clip of 30 s; the products of larger batches are slower
    scale = "centre"
    dimension = 200

    def __init__(self, config: MusicnnConfig) -> None:
        super().__init__()
        channels = sum(TIMBRAL.values()) + sum(TEMPORAL.values())
        widths = [channels] + [MIDDLE] * (MIDDLE_LAYERS - 1)
        pooled = 2 * (channels + MIDDLE * MIDDLE_LAYERS)
        self.input = Affine(1)
        self.timbral = nn.ModuleList(Layer(TIMBRAL[bins], TIMBRAL_FRAMES, bins) for bins in TIMBRAL)
        self.temporal = nn.ModuleList(Layer(TEMPORAL[frames], frames) for frames in TEMPORAL)
        self.middle = nn.ModuleList(Layer(MIDDLE, MIDDLE_FRAMES, width) for width in widths)
        self.pooled = Affine(pooled)
        self.dense = Layer(self.dimension, pooled)
        self.tags = nn.Linear(self.dimension, TAGS)  # their logits, from a vector
        weights = safetensors.torch.load_file(Path(__file__).with_name(config.weights))
        self.load_state_dict(weights, assign=True)

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        pooled = self.pooled(pooled_layers(self.front(windows * 255), self.middle))
        vectors: torch.Tensor = self.dense(row_products(pooled, self.dense.signed_kernel()))
        return vectors

    def tag(self, vectors: torch.Tensor) -> torch.Tensor:
        probabilities: torch.Tensor = self.tags(vectors).sigmoid()
        return probabilities

    def front(self, levels: torch.Tensor) -> torch.Tensor:
        """The timbral and temporal features, (batch, frames, channels), of a spectrogram in 0…255.

        The normalisation of the input is applied after the convolutions, so that stored levels stay whole
        numbers. The timbral kernels, four fifths of the arithmetic, are then rounded to bfloat16, which has
        8 bits, too. The products are exact in either arithmetic, so that the result is the same on every
        processor. Levels that are not whole numbers are multiplied by the kernels as they are, in float32.
        """
        low, high = SPECS[self.spec].range
        factor = (high - low) / 255 * self.input.factor
        zero = -(low * self.input.factor + self.input.offset) / factor  # the level that is normalised to 0
        is_stored = bool((levels == levels.round()).all())
        centre = zero.round() if is_stored else zero
        padding = rounded(zero - centre)
        maxima = []
        for layer in [*self.timbral, *self.temporal]:
            is_timbral, kernel = layer.kernel.dim() == 3, layer.signed_kernel()
            if is_timbral and is_stored:
                kernel = rounded(kernel)
            with bfloat16_products(is_timbral and is_stored):
                convolve = timbral if is_timbral else temporal
                values = convolve(levels - centre, kernel, padding.item())
            maxima.append(layer(factor * (values - padding * kernel.flatten(1).sum(1))))
        return torch.cat(maxima, 2)


class Affine(nn.Module):
    """A batch normalisation at inference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(channels))
        self.offset = nn.Parameter(torch.empty(channels))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.factor + self.offset


class Layer(Affine):
    """A kernel, (filters, …), then bias, ReLU and batch normalisation.

    Where a maximum over frequency follows, it is taken directly after the kernel, since the rest is
    monotonic. It falls where the factor of the normalisation is negative: such filters are negated before the
    maximum, and after it.
    """

    def __init__(self, filters: int, *kernel: int) -> None:
        super().__init__(filters)
        self.kernel = nn.Parameter(torch.empty(filters, *kernel))
        self.bias = nn.Parameter(torch.empty(filters))

    def signed_kernel(self) -> torch.Tensor:
        return self.kernel * self.factor.sign().view(-1, *[1] * (self.kernel.dim() - 1))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The layer's output from that of the signed kernel, (…, filters)."""
        return super().forward(functional.relu(values * self.factor.sign() + self.bias))


def pooled_layers(first: torch.Tensor, middle: nn.ModuleList) -> torch.Tensor:
    """The outputs of the first layers, (batch, frames, channels), → of each channel of these and of the
    layers in the middle the maximum and the mean over time, (batch, 2 × channels)."""
    features = [first]
    for layer in middle:
        assert isinstance(layer, Layer)
        added = features[-1] if len(features) > 1 else 0
        features.append(layer(same_convolution(features[-1], layer.signed_kernel())) + added)
    joined = torch.cat(features, 2)
    return torch.stack([joined.amax(1), joined.mean(1)], 2).flatten(1)


def timbral(levels: torch.Tensor, kernel: torch.Tensor, padding: float = 0.0) -> torch.Tensor:
    """The maximum over frequency of convolutions, (batch, frames, bins) → (batch, frames, filters)."""
    filters, taps, bins = kernel.shape
    count, positions = POSITIONS[bins], levels.shape[2] - bins + 1
    width = bins + count - 1  # bins of which one product gives `count` positions
    matrix = shifted(kernel, count)
    padded = functional.pad(levels, (0, 0, (taps - 1) // 2, taps // 2), value=padding)
    maxima = None
    for start in range(0, positions, count):
        start = min(start, positions - count)
        band = padded[:, :, start : start + width].flatten(1)
        rows = functional.pad(band, (0, len(matrix) - taps * width)).unfold(1, len(matrix), width)
        values = (rows.flatten(0, 1) @ matrix).view(-1, count, filters).amax(1)
        maxima = values if maxima is None else torch.maximum(maxima, values)
    assert maxima is not None
    return maxima.view(*levels.shape[:2], filters)


def temporal(levels: torch.Tensor, kernel: torch.Tensor, padding: float = 0.0) -> torch.Tensor:
    """The maximum over frequency of convolutions over time, (batch, frames, bins) → (batch, frames,
    filters)."""
    filters, taps = kernel.shape
    count, (frames, bins) = POSITIONS[taps], levels.shape[1:]
    blocks = -(-frames // count)
    matrix = shifted(kernel, count)
    before, length = (taps - 1) // 2, (blocks - 1) * count + len(matrix)
    padded = functional.pad(levels.transpose(1, 2), (before, length - before - frames), value=padding)
    rows = padded.unfold(2, len(matrix), count)  # (batch, bins, blocks, …)
    values = (rows.flatten(0, 2) @ matrix).view(len(rows), bins, blocks * count, filters)
    return values.amax(1)[:, :frames]


def shifted(kernel: torch.Tensor, count: int) -> torch.Tensor:
    """A kernel, (filters, …, width), at `count` neighbouring positions, as a matrix: (… × (width + count − 1)
    and zeros up to a multiple of TILE, count × filters)."""
    copies = [functional.pad(kernel, (shift, count - 1 - shift)).flatten(1) for shift in range(count)]
    matrix = torch.cat(copies)
    return functional.pad(matrix, (0, -matrix.shape[1] % TILE)).T


def same_convolution(features: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(batch, frames, channels) → (batch, frames, filters)"""
    _, taps, channels = kernel.shape
    padded = functional.pad(features, (0, 0, (taps - 1) // 2, taps // 2)).flatten(1)
    return padded.unfold(1, taps * channels, channels) @ kernel.flatten(1).T


def row_products(rows: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(batch, channels) × (filters, channels) → (batch, filters), a product for each row: some libraries
    multiply the last rows of a matrix by another kernel that rounds differently, and the vector of a window
    must not depend on its place in the batch."""
    return torch.bmm(rows[:, None], kernel.T.expand(len(rows), -1, -1))[:, 0]


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).to(values.dtype)


@contextmanager
def bfloat16_products(are_exact: bool) -> Iterator[None]:
    """Within, where the factors of all products are exact in bfloat16, a CPU may multiply them as such. It
    sums in float32 as ever. The setting holds for all threads of the process."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    if are_exact:
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
