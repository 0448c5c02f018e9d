"""Ways from sound to vector: siblings behind one interface (base.Embedder)."""

from songray.models.ali import ALIConfig
from songray.models.base import ModelConfig
from songray.models.cae import CAEConfig
from songray.models.cae2d import CAE2DConfig
from songray.models.contrastive import ContrastiveConfig
from songray.models.dualaxis import DualAxisConfig
from songray.models.factors import FactorsConfig
from songray.models.infogan import InfoGANConfig
from songray.models.mfcc import MFCCConfig
from songray.models.pca import PCAConfig
from songray.models.random import RandomConfig
from songray.models.raw import RawConfig
from songray.models.vae import VAEConfig

MODELS: dict[str, type[ModelConfig]] = {
    "contrastive": ContrastiveConfig,
    "factors": FactorsConfig,
    "cae": CAEConfig,
    "cae2d": CAE2DConfig,
    "dualaxis": DualAxisConfig,
    "vae": VAEConfig,
    "ali": ALIConfig,
    "infogan": InfoGANConfig,
    "mfcc": MFCCConfig,
    "pca": PCAConfig,
    "random": RandomConfig,
    "raw": RawConfig,
}
