"""Baseline without learning: mean and standard deviation of the cepstral coefficients of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch

from songray.learning.models.base import Embedder

BINS = 128


@dataclass(frozen=True)
class MFCCConfig:
    coefficients: int = 20
    """Cepstral coefficients a frame; a vector has twice as many numbers."""

    def build(self) -> MFCC:
        return MFCC(self)


class MFCC(Embedder):
    """What librosa.feature.mfcc makes of the same mel-spectrogram, over the whole clip."""

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
