"""Models small enough for tests, and inputs for them."""

from __future__ import annotations

import numpy as np
import torch

from songray.audio.spectrograms import SPECS, Spectrogram
from songray.learning.loop import build_model
from songray.learning.models import MODELS, LearningConfig, ModelConfig
from songray.learning.models.base import Batch, Embedder
from songray.learning.windows import Clips, learning_batches, to_device

OPTIONS = {
    "ali": {"width": 4},
    "cae": {"latent": 16, "dense_units": 64},
    "contrastive": {"widths": (16, 32)},
    "distilled": {"teacher": "teacher", "dimension": 8, "train_layers": True},
    "factors": {"dense_units": 64, "factors": 8},
    "pca": {"components": 4},
}
NAMES = [name for name in MODELS if name != "transformers"]  # that need no folder of another model
TRAINED = [name for name in MODELS if isinstance(MODELS[name](), LearningConfig)]


def small(name: str) -> ModelConfig:
    return MODELS[name](**OPTIONS.get(name, {}))


def fit(config: ModelConfig) -> Embedder:
    """The model, ready to embed."""
    model = build_model(config, 0).eval()
    if model.is_fitted:
        model.fit([torch.rand(6, model.frames, SPECS[model.spec].bins)])
    return model


def noise(model: Embedder, *frames: int) -> list[Spectrogram]:
    """One random spectrogram of each length."""
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (length, SPECS[model.spec].bins), np.uint8) for length in frames]


def batches_of(spectrograms: list[Spectrogram], model: Embedder, clips: int) -> list[Batch]:
    """The batches of an epoch, each of so many clips."""
    targets = np.random.default_rng(0).normal(size=(len(spectrograms), model.dimension)).astype(np.float32)
    numbers = np.arange(len(spectrograms))
    inputs = Clips(numbers, numbers, spectrograms, targets if model.target else None)
    batches = learning_batches(inputs, model, clips, seed=0, epoch=1)
    return [to_device(batch, torch.device("cpu")) for batch in batches]
