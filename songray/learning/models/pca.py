"""Baseline: the first principal components of flattened windows, fitted batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from songray.learning.models.base import Embedder

BINS = 128


@dataclass(frozen=True)
class PCAConfig:
    components: int = 64
    """Length of a vector."""
    frames: int = 216
    """Of a window: 5 s."""

    def build(self) -> PCA:
        return PCA(self)


class PCA(Embedder):
    """The best that a linear map can do at drawing windows again from so few numbers."""

    scale = "centre"
    is_fitted = True

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.frames, self.dimension = config.frames, config.components
        pixels = config.frames * BINS
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("components", torch.zeros(config.components, pixels))
        self.mean: torch.Tensor
        self.components: torch.Tensor

    def fit(self, windows: Iterable[torch.Tensor]) -> None:
        """Raises ValueError where there are fewer windows than components. Memory: two batches' worth of
        windows, and the components."""
        from sklearn.decomposition import IncrementalPCA  # here: it takes as long to load as torch

        pca = IncrementalPCA(self.dimension)
        waiting = torch.empty(0, self.mean.numel())
        for batch in windows:
            waiting = torch.cat([waiting, batch.flatten(1)])
            if len(waiting) >= self.dimension:  # it takes no smaller part
                pca.partial_fit(waiting.numpy())
                waiting = waiting[:0]
        if not hasattr(pca, "components_"):
            raise ValueError(
                f"{len(waiting)} windows are too few for {self.dimension} components: lower --components"
            )
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.components.copy_(torch.from_numpy(pca.components_))

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        return (windows.flatten(1) - self.mean) @ self.components.T

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(batch, components) → (batch, frames, bins)"""
        return (vectors @ self.components + self.mean).view(len(vectors), -1, BINS)
