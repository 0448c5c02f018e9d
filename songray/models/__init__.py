"""Ways from sound to vector: siblings behind one interface (base.Embedder)."""

from songray.models.base import ModelConfig
from songray.models.cae import CAEConfig
from songray.models.mfcc import MFCCConfig
from songray.models.random import RandomConfig

MODELS: dict[str, type[ModelConfig]] = {
    "cae": CAEConfig,
    "mfcc": MFCCConfig,
    "random": RandomConfig,
}
