"""Runs of earlier versions: the names of their parameters and options."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from small_models import NAMES, small

from songray.audio.spectrograms import SPECS
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.models.formats import current_options, current_parameters, stored_options
from songray.learning.models.options import ALIConfig

STORED = {  # current name of a module → its name in stored runs
    "contrastive": {"residual": "found"},
    "ali": {"window_encoder": "sees", "vector_encoder": "knows", "classifier": "judges"},
    "infogan": {"generator.decoder": "generator.drawing"},
    "random": {"residual": "found"},
}


def stored_name(model: str, name: str) -> str:
    for current, stored in STORED[model].items():
        name = name.replace(current, stored)
    return name


@pytest.mark.parametrize("name", STORED)
def test_a_state_dict_under_stored_names_gives_the_same_vectors(name: str) -> None:
    torch.manual_seed(0)
    before, after = build(small(name)).eval(), build(small(name)).eval()
    stored = {stored_name(name, key): weights for key, weights in before.state_dict().items()}
    assert stored.keys() != before.state_dict().keys()
    windows = torch.rand(2, before.frames, SPECS[before.spec].bins)
    assert not torch.equal(after.embed(windows), before.embed(windows))
    after.load_state_dict(current_parameters(name, stored))
    assert torch.equal(after.embed(windows), before.embed(windows))


@pytest.mark.parametrize("name", NAMES)
def test_current_parameter_names_stay_as_they_are(name: str) -> None:
    with torch.device("meta"):
        parameters = build(small(name)).state_dict()
    assert list(current_parameters(name, parameters)) == list(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_default_options_survive_storing(name: str) -> None:
    options = asdict(MODELS[name]())
    assert current_options(stored_options(options)) == options
    assert current_options(options) == options


def test_ali_stores_its_generator_steps_under_the_first_name() -> None:
    assert stored_options(asdict(ALIConfig(generator_steps=2)))["generator_turns"] == 2
    assert ALIConfig(**current_options({"generator_turns": 2})) == ALIConfig(generator_steps=2)
