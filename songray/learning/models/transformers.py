"""Any audio encoder of the transformers library, whose weights and files the run contains.

A window is a stretch of the waveform of fixed length, so that nothing is padded, and the vector of a window
does not depend on the others of its batch. The model's own feature extractor turns it into its input.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from songray.errors import InvalidOption
from songray.learning.models.base import Embedder
from songray.learning.models.clap_text import TOKENIZER, TOKENIZER_FILES, has_text, loaded_text, text_encoder
from songray.learning.models.folder import (
    CONFIG,
    checked_folder,
    description_of,
    folder_of,
    license_of,
    loaded,
    refusals,
    sha256,
    weight_files,
)
from songray.learning.models.pretrained import TransformersConfig

CLAP, ENCODEC = "clap_audio_model", "encodec"  # families whose output is found in another way than of others
WINDOW_SECONDS = 10.0  # where the feature extractor states no length, or a greater one
COPIED = (CONFIG, "preprocessor_config.json", "processor_config.json")

Weights = dict[str, torch.Tensor]


class Transformers(Embedder):
    """The pooled output of a pretrained encoder, or of one of its layers."""

    padding = "repeat"
    batch_windows = 4
    gpu_batch_windows = 32
    scale = "centre"

    def __init__(self, config: TransformersConfig) -> None:
        super().__init__()
        self.config, self.spec, self.dimension = config, config.waveform, config.dimension
        self.frames = round(config.window_seconds * config.rate)
        with folder_of(config.files) as folder:
            self.extractor = _extractor(folder, config)
            whole = _architecture(folder, config)
            self.text = text_encoder(folder, config) if TOKENIZER in config.files else None
        self.has_text = self.text is not None
        self.family: str = whole.config.model_type
        self.normalises = bool(getattr(whole.config, "normalize", False))
        self.network = _encoder_of(whole)
        self.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes build the model anew: they cannot import the classes of remote code by name."""
        return _rebuild, (self.config, self.state_dict())

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """(batch, samples, 1), full scale is 1 → (batch, dimension)"""
        hidden = self.hidden_states(self.features(windows))
        if hidden.dim() == 2:  # pooled by the model itself
            return hidden
        if self.config.time_pooling == "first":
            return hidden[:, 0]
        return hidden.amax(1) if self.config.time_pooling == "max" else hidden.mean(1)

    @torch.inference_mode()
    def embed_text(self, text: str) -> torch.Tensor:
        assert self.text is not None
        vector: torch.Tensor = self.text(text)
        return vector

    def features(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the feature extractor makes of windows. Masks are left out: nothing is padded."""
        channels = self.extractor.feature_size if self.family == ENCODEC else 1
        sounds = [np.asarray(window) for window in windows[..., 0].cpu().numpy()]
        if channels > 1:
            sounds = [np.stack([sound] * channels) for sound in sounds]
        features = self.extractor(sounds, sampling_rate=self.config.rate, return_tensors="pt")
        tensors = {name: tensor.to(windows.device) for name, tensor in features.items() if "mask" not in name}
        if "is_longer" in tensors:  # CLAP's extractor marks a random window of the batch as longer
            tensors["is_longer"] = torch.zeros_like(tensors["is_longer"])
        return tensors

    def hidden_states(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """(batch, positions, channels), or (batch, dimension) where the model pools by itself."""
        if self.family == ENCODEC:  # its encoder is made of convolutions, without hidden states
            values = features["input_values"]  # (batch, channels, samples)
            if self.normalises:
                values = values / (values.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8)
            hidden: torch.Tensor = self.network(values).transpose(1, 2)
            return hidden
        layer = self.config.layer
        output = self.network(**features, output_hidden_states=layer is not None)
        if layer is not None:
            hidden = output.hidden_states[layer]  # of CLAP (batch, channels, height, width)
            return hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden
        if self.family == CLAP:
            return functional.normalize(output.audio_embeds)
        hidden = output.last_hidden_state
        return hidden


def _rebuild(config: TransformersConfig, weights: Weights) -> Transformers:
    model = Transformers(config)
    model.load_state_dict(weights)
    return model


def resolved(config: TransformersConfig) -> TransformersConfig:
    """The options with what the folder of the model says: its files, and the rate, length and licence.

    Raises InvalidOption where the folder has no usable model.
    """
    folder = checked_folder(config)
    names = [*COPIED, *(TOKENIZER_FILES if has_text(folder, config) else ())]
    code = sorted(folder.glob("*.py")) if config.trust_remote_code else []
    paths = [*(path for name in names if (path := folder / name).is_file()), *code]
    files = {path.name: path.read_text() for path in paths}
    extractor = _extractor(folder, config)
    rate = getattr(extractor, "sampling_rate", None)
    if not rate:
        raise InvalidOption(
            f"--path {folder}: its preprocessor_config.json has no sampling_rate, as of audio"
        )
    config = dataclasses.replace(
        config,
        files=files,
        weights_sha256=sha256(weight_files(folder)),
        rate=rate,
        window_seconds=_window_seconds(extractor, config),
        license=config.license or license_of(folder),
    )
    return dataclasses.replace(config, dimension=_dimension(Transformers(config)))


def pretrained_weights(config: TransformersConfig) -> Weights:
    """The parameters of the model from the folder of its options. Raises InvalidOption where some are
    missing there."""
    folder = checked_folder(config)
    encoder = _encoder_of(loaded(folder, config, _architecture(folder, config), _encoder_of))
    weights = {f"network.{name}": tensor for name, tensor in encoder.state_dict().items()}
    if TOKENIZER in config.files:
        text = loaded_text(folder, config)
        weights |= {f"text.{name}": tensor for name, tensor in text.state_dict().items()}
    return weights


def _extractor(folder: Path, config: TransformersConfig) -> Any:
    with refusals(config):
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )


def _architecture(folder: Path, config: TransformersConfig) -> Any:
    """The model that the files in a folder describe, with initial weights; of CLAP the part for audio."""
    description = description_of(folder, config)
    with refusals(config):
        from transformers import AutoModel, ClapAudioModelWithProjection

        if description.model_type == "clap":
            return ClapAudioModelWithProjection(description.audio_config)
        return AutoModel.from_config(
            description, dtype=torch.float32, trust_remote_code=config.trust_remote_code
        )


def _encoder_of(whole: Any) -> nn.Module:
    """The part of a model that encodes audio."""
    if whole.config.model_type == ENCODEC or getattr(whole.config, "is_encoder_decoder", False):
        encoder: nn.Module = whole.encoder
        return encoder
    module: nn.Module = whole
    return module


def _window_seconds(extractor: Any, config: TransformersConfig) -> float:
    """Raises InvalidOption where the extractor would cut a window of so many seconds."""
    rate, longest, default = extractor.sampling_rate, np.inf, WINDOW_SECONDS
    if samples := getattr(extractor, "n_samples", None):
        longest = default = samples / rate  # Whisper pads shorter windows with silence
    elif samples := getattr(extractor, "nb_max_samples", None):
        longest = samples / rate  # CLAP cuts a random part of longer ones
    elif frames := getattr(extractor, "max_length", None):
        longest = frames / 100  # AST has a frame every 10 ms
    if not 0 <= config.window_seconds <= longest:
        raise InvalidOption(
            f"--window-seconds {config.window_seconds}: this model takes at most {longest:g} s"
        )
    return config.window_seconds or min(default, longest)


@torch.inference_mode()
def _dimension(model: Transformers) -> int:
    """Raises InvalidOption where the model does not have the layer of its options."""
    try:
        return model.embed(torch.zeros(1, model.frames or 0, 1)).shape[1]
    except (IndexError, TypeError) as error:
        raise InvalidOption(f"--layer {model.config.layer}: the model has no such hidden layer") from error
