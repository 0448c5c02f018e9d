"""Ways from sound to vector: siblings behind one interface (base.Embedder)."""

from songray.learning.models.ali import ALIConfig
from songray.learning.models.options import ModelConfig
from songray.learning.models.cae import CAEConfig
from songray.learning.models.cae2d import CAE2DConfig
from songray.learning.models.contrastive import ContrastiveConfig
from songray.learning.models.dualaxis import DualAxisConfig
from songray.learning.models.factors import FactorsConfig
from songray.learning.models.infogan import InfoGANConfig
from songray.learning.models.mfcc import MFCCConfig
from songray.learning.models.pca import PCAConfig
from songray.learning.models.random import RandomConfig
from songray.learning.models.raw import RawConfig
from songray.learning.models.vae import VAEConfig

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
