"""Distillation (Hinton et al., 2015, arXiv:1503.02531): a small encoder learns the vectors of another run.

It learns a projection of the features of its layers, which have learned those of musicnn before, and stay as
they are unless the options say otherwise. The loss is the cosine distance to the teacher's vectors, and the
squared error of the cosines within a batch (relational knowledge distillation, Park et al., 2019,
arXiv:1904.05068).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.contrastive import warm_up_and_decay
from songray.learning.models.musicnn.coarse import FEATURES, Coarse
from songray.learning.models.musicnn.network import FRAMES, Musicnn, row_products
from songray.learning.models.options import DistilledConfig
from songray.learning.models.pretrained import MusicnnMSDConfig

SLOWER = 0.1  # factor of the learning rate of the layers that have learned before


class Distilled(Embedder):
    """The mean of some windows of a track learns the teacher's vector of the track."""

    spec = "mel96-16k"
    frames = FRAMES  # 3.0 s
    batch_windows = 10  # those of a clip of 30 s
    views = 8
    windows_per_clip = 8
    scale = "centre"
    max_gradient_norm = 1.0

    def __init__(self, config: DistilledConfig) -> None:
        super().__init__()
        self.config = config
        self.target, self.target_tracks = f"embeddings/{config.teacher}", config.teacher_tracks
        self.dimension = config.dimension
        self.coarse = Coarse()
        self.head = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, config.dimension))
        if config.pretrained:
            weights = safetensors.torch.load_file(Path(__file__).with_name("distilled.safetensors"))
            self.load_state_dict(weights, strict=False, assign=True)
        else:
            self.coarse.start_from(Musicnn(MusicnnMSDConfig()))
        learns_layers = config.train_layers or not config.pretrained
        self.optimizer_groups = ("",) if learns_layers else ("head",)
        self.coarse.requires_grad_(learns_layers)

    def forward(self, batch: Batch, group: str = "") -> dict[str, torch.Tensor]:
        assert batch.targets is not None
        means = self.embed(batch.windows).float().view(-1, self.views, self.dimension).mean(1)
        predicted = functional.normalize(means, dim=1)  # (tracks, dimension)
        targets = functional.normalize(batch.targets[:: self.views], dim=1)
        cosine = (predicted * targets).sum(1).mean()
        differences = predicted @ predicted.T - targets @ targets.T
        pairs = max(1, len(predicted) * (len(predicted) - 1))
        error = differences.square().fill_diagonal_(0).sum() / pairs
        return {"loss": 1 - cosine + self.config.similarity_weight * error, "cosine": cosine.detach()}

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        normalisation, projection = self.head
        assert isinstance(projection, nn.Linear)
        return row_products(normalisation(self.coarse(windows)), projection.weight) + projection.bias

    def optimizer(self, group: str, learning_rate: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters())}]
        if group == "":
            groups.append({"params": list(self.coarse.parameters()), "factor": SLOWER})
        decay = self.config.weight_decay
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=decay, fused=True)

    def learning_rate_factor(self, progress: float) -> float:
        return warm_up_and_decay(progress)
