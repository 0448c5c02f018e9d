"""The options of all models, without torch: each `build` imports its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from songray.learning.models.base import Embedder


class ModelConfig(Protocol):
    """The options of a model: a frozen dataclass."""

    def build(self) -> Embedder:
        """The model, with weights initialised from torch's global random generator."""


@runtime_checkable
class LearningConfig(ModelConfig, Protocol):
    """The options of a model that is trained by gradient descent: its published schedule."""

    learning_rate: float
    batch_size: int  # windows in a step, over all workers
    epochs: int
