"""The text side of CLAP (Wu et al., 2023, arXiv:2211.06687): texts as vectors in the space of its sounds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from songray.learning.models.folder import description_of, loaded, refusals
from songray.learning.models.pretrained import TransformersConfig

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
DIFFERENT = ("calm piano", "loud guitars and drums", "a dog barks", "people applaud in a large hall")
# The mean cosine of different texts above which they are not told apart: of laion/larger_clap_music it is
# 0.9993, of larger_clap_general 0.29 (github.com/embeddings-benchmark/mteb/issues/5069).
LARGEST_COSINE = 0.95


class TextEncoder(nn.Module):
    """The tokenizer in a folder, and the text encoder of its config.json, with initial weights."""

    def __init__(self, folder: Path, text_config: Any) -> None:
        super().__init__()
        from transformers import AutoTokenizer, ClapTextModelWithProjection

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network = ClapTextModelWithProjection(text_config)

    def forward(self, text: str) -> torch.Tensor:
        """The vector of a text, (dimension,), of length 1; what exceeds the longest text is left out."""
        tokens = self.tokenizer(text, truncation=True, return_tensors="pt").to(self.network.device)
        output = self.network(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        vector: torch.Tensor = functional.normalize(output.text_embeds[0], dim=0)
        return vector

    @torch.inference_mode()
    def tells_apart(self) -> bool:
        """Whether texts that differ have vectors that differ."""
        vectors = torch.stack([self(text) for text in DIFFERENT])
        cosines = vectors @ vectors.T
        count = len(DIFFERENT)
        return bool((cosines.sum() - count) / (count * (count - 1)) <= LARGEST_COSINE)


def has_text(folder: Path, config: TransformersConfig) -> bool:
    """Whether the vectors of a model's sounds lie in one space with those of texts, which it tells apart."""
    description = description_of(folder, config)
    if description.model_type != "clap" or config.layer is not None or not (folder / TOKENIZER).is_file():
        return False
    if loaded_text(folder, config).tells_apart():
        return True
    logger.warning(
        "%s: its text encoder gives different texts nearly equal vectors, so that searches in words use tags "
        "alone",
        folder,
    )
    return False


def text_encoder(folder: Path, config: TransformersConfig) -> TextEncoder:
    with refusals(config):
        return TextEncoder(folder, description_of(folder, config).text_config).eval()


def loaded_text(folder: Path, config: TransformersConfig) -> TextEncoder:
    """The text encoder with the weights in the folder. Raises InvalidOption where it lacks some."""
    encoder = text_encoder(folder, config)
    encoder.network = loaded(folder, config, encoder.network, lambda network: network)
    return encoder.eval()
