"""Baseline: the first principal components of flattened windows, fitted incrementally."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from songray.errors import InvalidOption
from songray.learning.models.base import Embedder
from songray.learning.models.options import PCAConfig

BINS = 128


class PCA(Embedder):
    """The linear map of this dimension with the smallest reconstruction error."""

    scale = "centre"
    is_fitted = True
    has_decoder = True

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.frames, self.dimension = config.frames, config.components
        elements = config.frames * BINS
        self.register_buffer("mean", torch.zeros(elements))
        self.register_buffer("components", torch.zeros(config.components, elements))
        self.mean: torch.Tensor
        self.components: torch.Tensor

    def fit(self, windows: Iterable[torch.Tensor]) -> None:
        """Keeps at most `components` windows and one batch in memory. Raises InvalidOption where there are
        fewer windows than components."""
        from sklearn.decomposition import IncrementalPCA  # it takes as long to load as torch

        pca = IncrementalPCA(self.dimension)
        buffer = torch.empty(0, self.mean.numel())  # (windows, elements)
        for batch in windows:
            buffer = torch.cat([buffer, batch.flatten(1)])
            if len(buffer) >= self.dimension:  # the least that partial_fit accepts
                pca.partial_fit(buffer.numpy())
                buffer = buffer[:0]
        if not hasattr(pca, "components_"):
            raise InvalidOption(
                f"{len(buffer)} windows are too few for {self.dimension} components: lower --components"
            )
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.components.copy_(torch.from_numpy(pca.components_))

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        return (windows.flatten(1) - self.mean) @ self.components.T

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        return self.decode(self.embed(windows))

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(batch, components) → (batch, frames, bins)"""
        return (vectors @ self.components + self.mean).view(len(vectors), -1, BINS)
