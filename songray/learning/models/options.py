"""The options of the models that are trained and of the baselines, and `MODELS`, the registry of all models
by name; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from songray.learning.models.config import LearningConfig, ModelConfig
from songray.learning.models.pretrained import MusicnnMSDConfig, MusicnnMTTConfig, TransformersConfig


@dataclass(frozen=True)
class ContrastiveConfig(LearningConfig):
    """Contrastive encoder: augmented windows of one recording are positives, all others negatives."""

    widths: tuple[int, ...] = (48, 96, 128)
    """Channels of the encoder's stages; time and frequency are halved between stages."""
    blocks: int = 1
    """Residual blocks in each stage."""
    temperature: float = 0.2
    """Temperature of the NT-Xent loss; at a lower one the nearest negatives weigh more."""
    gain_db: float = 6.0
    """Augmentation: largest gain or attenuation of a window, in decibels."""
    tilt_db: float = 2.0
    """Augmentation: largest change of the highest bins relative to the lowest, in decibels."""
    noise_db: float = 1.0
    """Augmentation: largest standard deviation of the Gaussian noise, in decibels."""
    shift_bins: int = 3
    """Augmentation: largest shift along frequency, up or down, in mel bins."""
    masked_bins: int = 12
    """Augmentation: largest width of the frequency mask, in mel bins."""
    masked_frames: int = 24
    """Augmentation: largest length of the time mask, in frames."""
    learning_rate: float = 2e-3
    """Peak learning rate of the AdamW optimizer, after a linear warm-up; cosine decay to zero follows."""
    weight_decay: float = 0.05
    """Weight decay of the AdamW optimizer."""
    batch_size: int = 64
    """Windows in a step, over all workers, two of each clip."""
    epochs: int = 40
    """Passes over the training tracks, with eight windows of each."""


@dataclass(frozen=True)
class FactorsConfig(LearningConfig):
    """Regression of collaborative filtering factors from audio."""

    teacher: Literal["als", "item2vec"] = "als"
    """Method of the factors that are the targets; `songray factorize` computes them."""
    factors: int = 64
    """Factors of a track: the length of a vector."""
    loss: Literal["cosine", "squared"] = "cosine"
    """Loss between predicted and target factors: cosine distance or squared error."""
    dense_units: int = 2048
    """Units of each of the two hidden layers."""
    learning_rate: float = 1e-3
    """Learning rate of the Adam optimizer."""
    batch_size: int = 32
    """Windows in a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, with four windows of each."""


@dataclass(frozen=True)
class DistilledConfig(LearningConfig):
    """Distillation: learns to give the vectors of another run, in a fraction of its time."""

    teacher: str = ""
    """Run whose vectors are learned, of one model or of several; it must have embedded tracks of this
    library."""
    teacher_tracks: int = 20_000
    """Number of tracks at most that are learned from: a random sample of those that the teacher embedded."""
    dimension: int = 0
    """Length of a vector: by default, 0, that of the teacher's vectors."""
    similarity_weight: float = 4.0
    """Weight of the squared error of the cosines within a batch, beside the cosine distance to the teacher's
    vectors."""
    pretrained: bool = True
    """Start from the encoder that the package contains, which learned the features of both musicnn networks
    on free music; otherwise from the layers of musicnn-msd, at a coarser resolution, which learn, too."""
    train_layers: bool = False
    """Train the layers of the encoder, too, at a tenth of the learning rate, and not its last projection
    alone: for a teacher and music unlike those that it has learned from."""
    learning_rate: float = 2e-3
    """Peak learning rate of the AdamW optimizer, after a linear warm-up; cosine decay to zero follows."""
    weight_decay: float = 0.05
    """Weight decay of the AdamW optimizer."""
    batch_size: int = 256
    """Windows in a step, over all workers, eight of each track."""
    epochs: int = 40
    """Passes over the tracks, with eight windows of each."""


@dataclass(frozen=True)
class CAEConfig(LearningConfig):
    """Convolutional autoencoder over time (Clothier and Benson, 2021)."""

    latent: int = 256
    """Length of a vector."""
    dense_layers: int = 3
    """Hidden layers on each side of the latent vector: three in the paper, two in its authors' code."""
    dense_units: int = 2048
    """Units of each hidden layer."""
    learning_rate: float = 2e-4
    """Learning rate of the Adam optimizer."""
    batch_size: int = 32
    """Windows in a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, with four windows of each."""


@dataclass(frozen=True)
class CAE2DConfig(LearningConfig):
    """Two-dimensional convolutional autoencoder on windows of 5 s, in the three sizes of SongNet."""

    size: Literal["A", "B", "C"] = "C"
    """Size of the latent feature map: 3888 (A), 18144 (B, nearly the size of a window) or 180 (C) numbers."""
    learning_rate: float = 5e-4
    """Learning rate of the Adam optimizer."""
    batch_size: int = 5
    """Windows in a step, over all workers."""
    epochs: int = 125
    """Passes over the training tracks, with four windows of each."""


@dataclass(frozen=True)
class DualAxisConfig(LearningConfig):
    """Dual-axis autoencoder, over time and over frequency, and the plain one of its comparison."""

    encoder: Literal["dual", "plain"] = "dual"
    """Encoder: two branches of 1-D convolutions over time and over frequency, or one of 2-D convolutions."""
    latent: int = 256
    """Length of a vector; each of two branches computes half of it."""
    learning_rate: float = 1e-3
    """Learning rate of the Adam optimizer."""
    batch_size: int = 32
    """Windows in a step, over all workers."""
    epochs: int = 20
    """Passes over the training tracks, with four windows of each."""


@dataclass(frozen=True)
class VAEConfig(LearningConfig):
    """Convolutional variational autoencoder (Kingma and Welling, 2014)."""

    latent: int = 64
    """Length of a vector."""
    beta: float = 1.0
    """Weight of the KL divergence from N(0, I) relative to the reconstruction term."""
    deviation: float = 0.1
    """Standard deviation of the normal likelihood of each element, 0…1: 0.1 is 8 dB."""
    learning_rate: float = 1e-3
    """Learning rate of the Adam optimizer."""
    batch_size: int = 32
    """Windows in a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, with four windows of each."""


@dataclass(frozen=True)
class ALIConfig(LearningConfig):
    """Adversarially learned inference (Dumoulin et al., 2017), "song2vec"."""

    latent: int = 64
    """Length of a vector."""
    width: int = 32
    """Channels of the convolutions at full resolution; the deepest have eight times as many."""
    generator_steps: int = 4
    """Steps of the encoder and decoder for each step of the discriminator."""
    kernel_penalty: float = 1e-4
    """Weight of the L2 penalty on the discriminator's kernels; 0 disables it."""
    smooth_labels: bool = True
    """Sample positive labels uniformly from 0.7…0.9; otherwise they are 1."""
    noise_variance: float = 10.0
    """Variance, in dB², of the noise on the discriminator's input spectrograms; 0 disables it."""
    learning_rate: float = 2e-4
    """Learning rate of the Adam optimizers, whose moments are 0.5 and 0.999."""
    batch_size: int = 32
    """Windows in a step, over all workers."""
    epochs: int = 20
    """Passes over the training tracks, with ten windows of each."""


@dataclass(frozen=True)
class InfoGANConfig(LearningConfig):
    """InfoGAN (Chen et al., 2016), whose network Q is the encoder."""

    categories: int = 10
    """Values of the categorical code."""
    codes: int = 54
    """Continuous codes; their number plus the categories is the length of a vector."""
    noise: int = 62
    """Dimension of the incompressible noise, the generator's input beside the codes."""
    information: float = 1.0
    """Weight of the mutual information term, λ in the paper."""
    learning_rate: float = 2e-4
    """Learning rate of the Adam optimizers, whose moments are 0.5 and 0.999."""
    batch_size: int = 32
    """Windows in a step, over all workers."""
    epochs: int = 50
    """Passes over the training tracks, with four windows of each."""


@dataclass(frozen=True)
class MFCCConfig(ModelConfig):
    """Baseline without training: mean and standard deviation of a clip's MFCCs."""

    coefficients: int = 20
    """Cepstral coefficients of a frame; a vector has twice as many numbers."""


@dataclass(frozen=True)
class PCAConfig(ModelConfig):
    """Baseline: the first principal components of flattened windows, fitted incrementally."""

    components: int = 64
    """Principal components: the length of a vector."""
    frames: int = 216
    """Length of a window in frames; 216 are 5 s."""


@dataclass(frozen=True)
class RandomConfig(ModelConfig):
    """Baseline: the encoder of another model with its initial weights."""

    encoder: Literal["cae", "contrastive"] = "contrastive"
    """Model whose encoder is used."""


@dataclass(frozen=True)
class RawConfig(ModelConfig):
    """Baseline without training: the flattened window."""

    frames: int = 216
    """Length of a window in frames; 216 are 5 s."""


MODELS: dict[str, type[ModelConfig]] = {
    "contrastive": ContrastiveConfig,
    "factors": FactorsConfig,
    "distilled": DistilledConfig,
    "cae": CAEConfig,
    "cae2d": CAE2DConfig,
    "dualaxis": DualAxisConfig,
    "vae": VAEConfig,
    "ali": ALIConfig,
    "infogan": InfoGANConfig,
    "musicnn-msd": MusicnnMSDConfig,
    "musicnn-mtt": MusicnnMTTConfig,
    "mfcc": MFCCConfig,
    "pca": PCAConfig,
    "random": RandomConfig,
    "raw": RawConfig,
    "transformers": TransformersConfig,
}
