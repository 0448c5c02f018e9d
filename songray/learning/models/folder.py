"""A local folder with a model of the transformers library: its files, its description and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from songray.errors import InvalidOption
from songray.learning.models.pretrained import TransformersConfig

CONFIG = "config.json"


def checked_folder(config: TransformersConfig) -> Path:
    folder = Path(config.path)
    if not config.path or not (folder / CONFIG).is_file():
        raise InvalidOption(
            f"--path {config.path!r}: name a folder with a {CONFIG} of the transformers library"
        )
    if not weight_files(folder):
        raise InvalidOption(
            f"--path {folder}: it has no *.safetensors, and loading other formats may run code: save it anew "
            "by save_pretrained"
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@contextmanager
def folder_of(files: dict[str, str]) -> Iterator[Path]:
    """A folder with these files, within the context. The library caches code under the name of its folder, so
    that equal files have equal names."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    with TemporaryDirectory(prefix="songray-") as temporary:
        folder = Path(temporary) / f"songray_{digest}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        yield folder


@contextmanager
def refusals(config: TransformersConfig) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InvalidOption(
            f"this model needs more packages: pip install 'songray[transformers]' ({error})"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        code = "" if config.trust_remote_code else "; a model with code of its own needs --trust-remote-code"
        raise InvalidOption(f"--path {config.path}: {error}{code}") from error


def description_of(folder: Path, config: TransformersConfig) -> Any:
    """What config.json says of a model."""
    with refusals(config):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )


def loaded(folder: Path, config: TransformersConfig, whole: Any, part: Callable[[Any], nn.Module]) -> Any:
    """A model of the class and the config of `whole`, with the weights in a folder. Raises InvalidOption
    where these lack parameters of a part of it."""
    with refusals(config):
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # it reports the parameters of parts that are not used
        model, report = type(whole).from_pretrained(
            folder,
            config=whole.config,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    needed = part(model)
    prefix = next((f"{name}." for name, module in model.named_modules() if name and module is needed), "")
    missing = sorted(name for name in report["missing_keys"] if name.startswith(prefix))
    if missing:
        raise InvalidOption(f"--path {folder}: its weights have no {missing[0]}, which its {CONFIG} asks for")
    return model


def license_of(folder: Path) -> str:
    """The licence that the model card states, or ""."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    return str(ModelCard.load(card).data.get("license") or "") if card.is_file() else ""


def sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
