"""What the options of all models share; nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar


class ModelConfig:
    """Options of a model, a frozen dataclass. The first line of its docstring describes the model."""

    tags: ClassVar[tuple[str, ...]] = ()  # of the sound, whose probabilities the model gives beside a vector
    trained_on: ClassVar[str] = ""  # of pretrained weights: the data that they were trained on

    @property
    def waveform(self) -> str:
        """The name of the samples that the model takes, waveform-RATE; "" where it takes a spectrogram."""
        return ""


class LearningConfig(ModelConfig):
    """Options of a model that is trained by gradient descent; the defaults are the published schedule."""

    learning_rate: float
    batch_size: int  # windows in a step, over all workers
    epochs: int
