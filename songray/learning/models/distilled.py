"""Distillation (Hinton et al., 2015, arXiv:1503.02531): a small encoder learns the vectors of another run.

The loss is the cosine distance to the teacher's vectors, and the squared error of the cosines within a batch
(relational knowledge distillation, Park et al., 2019, arXiv:1904.05068). The encoder is that of
`contrastive`, which takes a fraction of the time of the pretrained networks.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.contrastive import (
    augment,
    stages,
    statistics_length,
    statistics_of,
    warm_up_and_decay,
)
from songray.learning.models.options import ContrastiveConfig, DistilledConfig

WIDTHS, BLOCKS = (48, 96, 128), 1  # of the stages; those of distilled.safetensors
AUGMENTATION = ContrastiveConfig()


class Distilled(Embedder):
    """Each window of a track learns the teacher's vector of the track."""

    frames = 216  # 5.0 s
    windows_per_clip = 4
    scale = "centre"
    max_gradient_norm = 1.0

    def __init__(self, config: DistilledConfig) -> None:
        super().__init__()
        self.config = config
        self.target, self.target_tracks = f"embeddings/{config.teacher}", config.teacher_tracks
        self.dimension = config.dimension
        length = statistics_length(WIDTHS)
        self.stages = nn.ModuleList(stages(WIDTHS, BLOCKS))
        self.normalisation = nn.BatchNorm1d(length)
        self.projection = nn.Linear(length, config.dimension)
        if config.pretrained:
            weights = safetensors.torch.load_file(Path(__file__).with_name("distilled.safetensors"))
            self.load_state_dict(weights, strict=False, assign=True)

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        assert batch.targets is not None
        windows = augment(batch.windows, AUGMENTATION) if self.training else batch.windows
        predicted = functional.normalize(self.embed(windows).float(), dim=1)  # (windows, dimension)
        targets = functional.normalize(batch.targets, dim=1)
        cosine = (predicted * targets).sum(1).mean()
        differences = predicted @ predicted.T - targets @ targets.T
        pairs = max(1, len(predicted) * (len(predicted) - 1))
        error = differences.square().fill_diagonal_(0).sum() / pairs
        return {"loss": 1 - cosine + self.config.similarity_weight * error, "cosine": cosine.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.projection(self.normalisation(statistics_of(self.stages, windows)))
        return vectors

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        decay = self.config.weight_decay
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=decay, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        return warm_up_and_decay(progress)
