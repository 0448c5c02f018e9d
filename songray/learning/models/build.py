"""Builds a model from its options."""

from __future__ import annotations

import torch

from songray.learning.models import options, pretrained, transformers
from songray.learning.models.ali import ALI
from songray.learning.models.base import Embedder
from songray.learning.models.cae import CAE
from songray.learning.models.cae2d import CAE2D
from songray.learning.models.config import ModelConfig
from songray.learning.models.contrastive import Contrastive
from songray.learning.models.distilled import Distilled
from songray.learning.models.dualaxis import DualAxis
from songray.learning.models.factors import Factors
from songray.learning.models.infogan import InfoGAN
from songray.learning.models.mfcc import MFCC
from songray.learning.models.musicnn.network import Musicnn
from songray.learning.models.pca import PCA
from songray.learning.models.random import RandomEncoder
from songray.learning.models.raw import Raw
from songray.learning.models.vae import VAE

CLASSES: dict[type[ModelConfig], type[Embedder]] = {
    options.ContrastiveConfig: Contrastive,
    options.FactorsConfig: Factors,
    options.DistilledConfig: Distilled,
    options.CAEConfig: CAE,
    options.CAE2DConfig: CAE2D,
    options.DualAxisConfig: DualAxis,
    options.VAEConfig: VAE,
    options.ALIConfig: ALI,
    options.InfoGANConfig: InfoGAN,
    pretrained.MusicnnMSDConfig: Musicnn,
    pretrained.MusicnnMTTConfig: Musicnn,
    options.MFCCConfig: MFCC,
    options.PCAConfig: PCA,
    options.RandomConfig: RandomEncoder,
    options.RawConfig: Raw,
    pretrained.TransformersConfig: transformers.Transformers,
}


def build(config: ModelConfig) -> Embedder:
    """The model, initialised from torch's global random generator."""
    return CLASSES[type(config)](config)


def resolved(config: ModelConfig) -> ModelConfig:
    """The options of a model, with what the files that they name say. Raises InvalidOption where these
    cannot be used."""
    return transformers.resolved(config) if isinstance(config, pretrained.TransformersConfig) else config


def pretrained_weights(config: ModelConfig) -> dict[str, torch.Tensor] | None:
    """The parameters in the files that the options name; None where `build` initialises them itself."""
    if not isinstance(config, pretrained.TransformersConfig):
        return None
    return transformers.pretrained_weights(config)
