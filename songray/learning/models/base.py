"""What every model offers: how it turns windows of a spectrogram into vectors, and what it learns from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

Short = Literal["repeat", "silence"]


class Batch(NamedTuple):
    """What a step learns from. The views of one clip lie beside each other."""

    windows: torch.Tensor  # (windows, frames, bins), 0…1
    recordings: torch.Tensor  # (windows,) numbers of those that they are from
    targets: torch.Tensor | None = None  # (windows, …) what the model's `target` holds of that clip


class Embedder(nn.Module):
    """A model, without Ray: it declares what it eats, names its players, owns its loss, and embeds.

    Windows are (batch, frames, bins), float in 0…1: the stored dB, scaled.
    """

    spec: str = "mel128"  # of SPECS
    frames: int | None  # of a window; None takes the whole clip as one window
    hop: int | None = None  # frames from one window to the next when it embeds; None: side by side
    short: Short = "repeat"  # what fills the window of a clip that is too short
    views: int = 1  # windows of one clip that it learns from together
    windows_per_clip: int = 4  # that an epoch takes of each clip, at random places
    target: str | None = None  # table that holds what is to be predicted of each track
    dimension: int  # of a vector
    optimizer_groups: tuple[str, ...] = ("",)  # submodules that learn alternately; ""
    # is the whole model
    fitted: bool = False  # without players, by `fit`
    validation_metric: str | None = "loss"  # minimised by the best epoch; None: the last
    scale: Literal["whiten", "steady", "standardise", "centre"] = "whiten"  # of vectors, by the run
    max_norm: float | None = None  # longer gradients are cut to it

    def forward(self, batch: Batch, player: str = "") -> dict[str, torch.Tensor]:
        """`loss` of a player to go down, and what else is worth a curve; DDP watches this call.

        A model that draws its windows again gives `squared_error` too, the mean over their numbers.
        """
        raise TypeError(f"{type(self).__name__} is not trained")

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """(batch, frames, bins) → (batch, dimension)"""
        raise NotImplementedError

    def fit(self, windows: Iterable[torch.Tensor]) -> None:
        """Learn from batches of windows in one pass, without gradients; most models have nothing to fit."""

    def optimizer(self, player: str, learning_rate: float) -> torch.optim.Optimizer:
        """Of one player; its learning rate is that of the start, times `rate`."""
        return torch.optim.Adam(self.get_submodule(player).parameters(), lr=learning_rate, fused=True)

    def rate(self, progress: float) -> float:
        """The learning rate after a share of the training, as a share of the given one."""
        return 1.0


class ModelConfig(Protocol):
    """A frozen dataclass of a model's options, beside the model."""

    def build(self) -> Embedder:
        """The model with fresh weights, drawn from torch's global generator."""


@runtime_checkable
class LearningConfig(ModelConfig, Protocol):
    """Of a model that learns: the schedule that was published for it."""

    learning_rate: float
    batch_size: int  # windows, over all workers
    epochs: int
