"""Tiny models of the transformers library with random weights, saved as their authors save theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4),
                "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 2}  # fmt: skip
WORDS = ["<unk>", "calm", "piano", "loud", "guitars", "drums", "dog", "barks", "people", "applaud", "hall"]
HALVES = ("encoder", "decoder")


def clap(folder: Path, is_fused: bool = False, equal_texts: bool = False) -> None:
    audio = {"hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2], "projection_dim": 16,
             "patch_embeds_hidden_size": 16, "num_hidden_layers": 2, "aff_block_r": 2,
             "enable_fusion": is_fused}  # fmt: skip
    text = SMALL | {"vocab_size": len(WORDS), "projection_dim": 16}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    model = transformers.ClapModel(config)
    if equal_texts:  # as laion/larger_clap_music
        model.text_projection.linear2.bias.data.fill_(100.0)
    model.save_pretrained(folder)
    truncation = "fusion" if is_fused else "rand_trunc"
    transformers.ClapFeatureExtractor(truncation=truncation).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder)


def fused_clap(folder: Path) -> None:
    clap(folder, is_fused=True)


def ast(folder: Path) -> None:
    transformers.ASTModel(transformers.ASTConfig(**SMALL)).save_pretrained(folder)
    transformers.ASTFeatureExtractor().save_pretrained(folder)


def wav2vec2(folder: Path) -> None:
    config = transformers.Wav2Vec2Config(**SMALL, **CONVOLUTIONS)
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


def hubert(folder: Path) -> None:
    config = transformers.HubertConfig(**SMALL, **CONVOLUTIONS)
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def encodec(folder: Path, channels: int = 1) -> None:
    rate = 24_000 * channels
    config = transformers.EncodecConfig(
        audio_channels=channels,
        normalize=channels == 2,
        sampling_rate=rate,
        num_filters=4,
        hidden_size=16,
        codebook_size=16,
    )
    transformers.EncodecModel(config).save_pretrained(folder)
    transformers.EncodecFeatureExtractor(feature_size=channels, sampling_rate=rate).save_pretrained(folder)


def stereo_encodec(folder: Path) -> None:
    encodec(folder, channels=2)


def whisper(folder: Path) -> None:
    sizes = {f"{half}_{name}": count for half in HALVES for name, count in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    tokens = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.WhisperConfig(d_model=32, decoder_start_token_id=3, **sizes, **tokens)
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class LevelsConfig(PretrainedConfig):
    model_type = "levels"

    def __init__(self, channels=6, **options):
        super().__init__(**options)
        self.channels = channels


class LevelsModel(PreTrainedModel):
    config_class = LevelsConfig

    def __init__(self, config):
        super().__init__(config)
        self.convolution = torch.nn.Conv1d(1, config.channels, 400, 160)
        self.post_init()

    def forward(self, input_values, output_hidden_states=None):
        hidden = self.convolution(input_values[:, None]).relu().transpose(1, 2)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))
"""


def remote_code(folder: Path) -> None:
    """A model whose code lies beside its weights, as that of MERT."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "levels.py").write_text(CODE)
    scope: dict[str, type] = {}
    exec(CODE, scope)
    scope["LevelsModel"](scope["LevelsConfig"]()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "levels.LevelsConfig", "AutoModel": "levels.LevelsModel"}
    (folder / "config.json").write_text(json.dumps(config))
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (clap, fused_clap, ast, wav2vec2, hubert, encodec, stereo_encodec, whisper, remote_code)
}


def make(name: str, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        FAMILIES[name](folder)
