"""The specs of spectrograms, and how they are stored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from songray.audio.sets import specs_of
from songray.audio.spectrograms import DEFAULT_SPECS, SPECS, quantise
from songray.errors import Conflict
from songray.library import Library

# As sets record it that were made before a spec could have a gain.
MEL128 = {"rate": 22050, "n_fft": 2048, "hop_length": 512, "n_mels": 128, "fmax": None, "n_mfcc": 0,
          "n_chroma": 0, "version": 1}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_values_outside_the_range_are_stored_as_the_nearer_end(name: str) -> None:
    low, high = SPECS[name].range
    beyond = np.array([[low - 1, low, high, high + 0.1, high + 1e6]], np.float32)
    assert quantise(beyond, SPECS[name]).tolist() == [[0, 0, 255, 255, 255]]


def test_a_set_of_an_earlier_version_is_recognised(library: Library) -> None:
    spectrograms = library.table("spectrograms", "default")
    spectrograms.claim({"specs": {"mel128": MEL128}})
    spectrograms.claim({"specs": {"mel128": SPECS["mel128"].settings}})
    louder = replace(SPECS["mel128"], gain=10.0)
    with pytest.raises(Conflict, match="gain"):
        spectrograms.claim({"specs": {"mel128": louder.settings}})


def test_the_settings_of_a_spec_tell_it_from_all_others() -> None:
    assert len({json.dumps(spec.settings) for spec in SPECS.values()}) == len(SPECS)


def test_a_set_keeps_its_specs_and_a_new_one_has_the_default(library: Library) -> None:
    assert specs_of(library, "default") == DEFAULT_SPECS
    library.table("spectrograms", "default").claim({"specs": {"mel128": MEL128}})
    assert specs_of(library, "default") == ("mel128",)
