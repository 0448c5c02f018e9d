"""Builds a model from its options."""

from __future__ import annotations

from songray.learning.models import options
from songray.learning.models.ali import ALI
from songray.learning.models.base import Embedder
from songray.learning.models.cae import CAE
from songray.learning.models.cae2d import CAE2D
from songray.learning.models.contrastive import Contrastive
from songray.learning.models.distilled import Distilled
from songray.learning.models.dualaxis import DualAxis
from songray.learning.models.factors import Factors
from songray.learning.models.infogan import InfoGAN
from songray.learning.models.mfcc import MFCC
from songray.learning.models.musicnn.network import Musicnn
from songray.learning.models.options import ModelConfig
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
    options.MusicnnMSDConfig: Musicnn,
    options.MusicnnMTTConfig: Musicnn,
    options.MFCCConfig: MFCC,
    options.PCAConfig: PCA,
    options.RandomConfig: RandomEncoder,
    options.RawConfig: Raw,
}


def build(config: ModelConfig) -> Embedder:
    """The model, initialised from torch's global random generator."""
    return CLASSES[type(config)](config)
