"""Names of parameters and options that stored runs have from earlier versions, and their current names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_CONTRASTIVE = {"found": "residual"}

# model → segment of a parameter's dotted name, as stored → current
RENAMED_PARAMETERS: dict[str, dict[str, str]] = {
    "contrastive": _CONTRASTIVE,
    "ali": {"sees": "window_encoder", "knows": "vector_encoder", "judges": "classifier"},
    "infogan": {"drawing": "decoder"},
    "random": _CONTRASTIVE,  # it may wrap the encoder of `contrastive`
}

# option of a model, as stored → current
RENAMED_OPTIONS: dict[str, str] = {"generator_turns": "generator_steps"}


def current_parameters(model: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """A model's state dict under the current names; current names stay as they are."""
    renamed = RENAMED_PARAMETERS.get(model, {})
    return {
        ".".join(renamed.get(segment, segment) for segment in name.split(".")): tensor
        for name, tensor in tensors.items()
    }


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options under the current names; current names stay as they are."""
    return {RENAMED_OPTIONS.get(name, name): value for name, value in options.items()}


def stored_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options under the names that are stored, over which default run names are hashed."""
    stored = {current: old for old, current in RENAMED_OPTIONS.items()}
    return {stored.get(name, name): value for name, value in options.items()}
