"""The interface that all models share: their input, their optimizer groups, their loss and their vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import nn

Padding = Literal["repeat", "silence"]
Scale = Literal["whiten", "wccn", "standardise", "centre"]


class Batch(NamedTuple):
    """The input of one training step. The views of one clip are adjacent."""

    windows: torch.Tensor  # (windows, frames, bins), 0…1
    recordings: torch.Tensor  # (windows,), number of the recording that each window is cut from
    targets: torch.Tensor | None = None  # (windows, …), row of the table `target` for each window's track


class Embedder(nn.Module):
    """Maps windows of a spectrogram to vectors; declares its input and owns its loss. Independent of Ray.

    Windows are (batch, frames, bins), float in 0…1: what the spec's range is stored as, divided by 255. Those
    of a waveform are (batch, samples, 1).
    """

    spec: str = "mel128"  # name in SPECS, or waveform-RATE
    frames: int | None  # length of a window; None: the whole clip is one window
    hop: int | None = None  # frames between the starts of windows when embedding; None: `frames`
    batch_windows: int = 16  # windows that are embedded together; larger batches are not faster on a CPU
    gpu_batch_windows: int = 128  # the same on a GPU, which smaller batches leave idle
    padding: Padding = "repeat"  # how a clip shorter than a window is extended
    views: int = 1  # windows of a clip that are in a batch together
    windows_per_clip: int = 4  # random windows of each clip in an epoch
    target: str | None = None  # table with the regression targets, one row a track: factors or embeddings
    target_tracks: int | None = None  # of the table that are learned from, a random sample; None: all
    dimension: int  # length of a vector
    optimizer_groups: tuple[str, ...] = ("",)  # submodules that alternating steps optimise, in this order;
    # a name may repeat, "" is the whole model
    has_text: bool = False  # whether `embed_text` does
    has_decoder: bool = False  # whether `reconstruct` does
    is_fitted: bool = False  # fitted by `fit`, without gradients
    validation_metric: str | None = "loss"  # minimal in the best epoch; None: the last epoch is kept
    scale: Scale = "whiten"  # how a run scales the vectors; "wccn": within-class covariance normalisation
    max_gradient_norm: float | None = None  # gradients are clipped to this norm

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        """`loss`, which a step of this optimizer group minimises, and further scalars to record.

        DistributedDataParallel synchronises the gradients of this call only. A model that reconstructs its
        input returns `squared_error` too, the mean over the elements of the windows.
        """
        raise TypeError(f"{type(self).__name__} is not trained")

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """(batch, frames, bins) → (batch, dimension)"""
        raise NotImplementedError

    def embed_text(self, text: str) -> torch.Tensor:
        """The vector of a text in the space of sounds, (dimension,), where `has_text`."""
        raise TypeError(f"{type(self).__name__} embeds no text")

    def tag(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors of windows, (batch, dimension) → probabilities of the tags in the model's options, (batch,
        tags)."""
        raise TypeError(f"{type(self).__name__} gives no tags")

    def reconstruct(self, windows: torch.Tensor) -> torch.Tensor:
        """(batch, frames, bins) → the same, decoded from their vectors, where `has_decoder`."""
        raise TypeError(f"{type(self).__name__} has no decoder")

    def fit(self, windows: Iterable[torch.Tensor]) -> None:
        """Fit in one pass over batches of windows, where `is_fitted`."""

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of one group; its learning rate is multiplied by `learning_rate_factor`, and by the
        `factor` of a group of its parameters that has one."""
        return torch.optim.Adam(self.get_submodule(group).parameters(), lr=learning_rate, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        """The factor of the learning rate at `progress`, the share of the training that is done."""
        return 1.0
