"""The options of the pretrained models; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from songray.audio.spectrograms import WAVEFORM
from songray.learning.models import labels
from songray.learning.models.config import ModelConfig


class MusicnnConfig(ModelConfig):
    """Options of the pretrained models, of which there are none."""

    weights: str  # file of their weights, beside the network


@dataclass(frozen=True)
class MusicnnMSDConfig(MusicnnConfig):
    """Pretrained: musicnn, trained on 200,000 songs of the Million Song Dataset to predict Last.fm's tags."""

    weights = "msd.safetensors"
    trained_on = "200,000 songs of the Million Song Dataset, their tags at Last.fm"
    tags = labels.MSD


@dataclass(frozen=True)
class MusicnnMTTConfig(MusicnnConfig):
    """Pretrained: musicnn, trained on the 25,000 clips of MagnaTagATune to predict their tags."""

    weights = "mtt.safetensors"
    trained_on = "25,000 clips of MagnaTagATune, their tags"
    tags = labels.MTT


@dataclass(frozen=True)
class TransformersConfig(ModelConfig):
    """Pretrained: any audio model of the transformers library, such as CLAP or MERT, from a local folder."""

    trained_on = "what its model card says"

    path: str = ""
    """Folder of the model: config.json, preprocessor_config.json and *.safetensors, which the run copies."""
    layer: int | None = None
    """Hidden layer whose output is the vector: 0 is the input of the first one, -1 the last one. By default
    the output of the model: of CLAP the projected vector, of others their last hidden states."""
    time_pooling: Literal["mean", "max", "first"] = "mean"
    """Pooling of the hidden states of a window: their mean, their maximum, or the first one."""
    window_seconds: float = 0.0
    """Length of a window, in seconds; by default, 0, 10 s, or what the model can take: of Whisper 30 s."""
    trust_remote_code: bool = False
    """Run the Python code in the folder, which MERT needs; the run copies it, and runs it wherever it
    embeds."""
    license: str = ""
    """Licence of the weights, as the run records it; by default what the model card in the folder states."""
    files: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """Text of the copied files, by name; filled in from the folder, as the options that follow."""
    weights_sha256: Annotated[str, tyro.conf.Suppress] = ""
    """SHA-256 of the files of weights."""
    rate: Annotated[int, tyro.conf.Suppress] = 0
    """Sampling rate of the waveform, in Hz."""
    dimension: Annotated[int, tyro.conf.Suppress] = 0
    """Length of a vector."""

    @property
    def waveform(self) -> str:
        return f"{WAVEFORM}{self.rate}"
