"""Baseline without training: mean and standard deviation of a clip's MFCCs."""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch

from songray.learning.models.base import Embedder
from songray.learning.models.options import MFCCConfig

BINS = 128


class MFCC(Embedder):
    """The coefficients of librosa.feature.mfcc on the same mel spectrogram, pooled over the whole clip."""

    frames = None
    scale = "standardise"

    def __init__(self, config: MFCCConfig) -> None:
        super().__init__()
        self.dimension = 2 * config.coefficients
        basis = scipy.fft.dct(np.eye(BINS), axis=0, norm="ortho")[: config.coefficients]
        self.register_buffer("basis", torch.tensor(basis.T, dtype=torch.float32))  # (bins, coefficients)
        self.basis: torch.Tensor

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        cepstra = windows @ self.basis  # (batch, frames, coefficients)
        return torch.cat([cepstra.mean(1), cepstra.std(1, correction=0)], dim=1)
