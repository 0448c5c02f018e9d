"""The scale of a run's vectors, and encoders as they are stored."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import fit, noise, small

from songray.errors import CorruptData
from songray.learning import encoder, runs
from songray.learning.encoder import ModelEncoder, fit_encoder
from songray.learning.models.formats import stored_options
from songray.learning.runs import Run
from songray.learning.scale import centre, standardise, wccn, whiten
from songray.learning.windows import jackknife_clips
from songray.library import Library


@given(st.integers(2, 60), st.integers(0, 9))
def test_whitened_vectors_have_equal_variance_in_all_directions(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pooled = random.normal(size=(count, 6)) * [100, 1, 1, 1, 0.5, 0] + 7
    white = (pooled - pooled.mean(axis=0)) @ whiten(pooled)
    components = white.shape[1]
    assert 1 <= components <= max(1, count // 4)
    assert np.allclose(white.T @ white / count, np.eye(components), atol=1e-3)


def test_standardised_numbers_have_a_deviation_of_one_and_centred_ones_their_own() -> None:
    pooled = np.random.default_rng(0).normal(size=(50, 3)) * [9, 1, 0]
    assert np.allclose((pooled * standardise(pooled)).std(axis=0), [1, 1, 0], atol=1e-5)
    assert (centre(pooled) == 1).all()


def test_wccn_weighs_a_direction_less_that_varies_within_clips() -> None:
    random = np.random.default_rng(0)
    pooled = random.normal(size=(300, 4))
    differences = random.normal(size=(1500, 4)) * [0.01, 1, 0.01, 0.01]
    weight = np.linalg.norm(wccn(pooled, differences), axis=1)  # (numbers,)
    assert weight[1] < 0.2 * weight[[0, 2, 3]].min()
    alike = np.linalg.norm(wccn(pooled, differences[:0]), axis=1)  # every clip has one window
    assert alike.min() > 0.8 * alike.max()


@given(st.integers(1, 20), st.booleans())
def test_normalised_vectors_have_length_one(count: int, is_matrix: bool) -> None:
    random = np.random.default_rng(count)
    projection = random.normal(size=(6, 3) if is_matrix else 6).astype(np.float32)
    scaled = ModelEncoder(fit(small("mfcc")), random.normal(size=6).astype(np.float32), projection)
    vectors = scaled.normalise(random.normal(size=(count, 6)).astype(np.float32))
    assert vectors.shape == (count, 3 if is_matrix else 6) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def save(library: Library, model: str) -> ModelEncoder:
    """A run as this version stores it."""
    embedder, pooling = fit(small(model)), "mean+deviation"
    clips = jackknife_clips(embedder, noise(embedder, 600, 700, 800), pooling)
    fitted = fit_encoder(embedder, clips, pooling)
    options, config = asdict(small(model)), {"pooling": pooling}
    encoder.save(library, Run("r", model, options, config, "default", {}, "", {}, {}, []), fitted)
    return fitted


def test_a_stored_encoder_keeps_its_pooling(library: Library) -> None:
    saved = save(library, "mfcc")
    loaded = encoder.load_model(library, runs.choose(library, "r"))
    assert loaded.pooling == saved.pooling == "mean+deviation"
    assert np.array_equal(loaded.mean, saved.mean) and np.array_equal(loaded.projection, saved.projection)


@pytest.mark.parametrize(
    ("model", "stored_names"),
    [
        ("contrastive", {"residual": "found"}),
        ("ali", {"window_encoder": "sees", "vector_encoder": "knows", "classifier": "judges"}),
    ],
)
def test_a_run_of_an_earlier_version_gives_the_same_vectors(
    model: str, stored_names: dict[str, str], library: Library
) -> None:
    saved = save(library, model)
    folder = Path(library.path("runs", "r"))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stored[".".join(stored_names.get(part, part) for part in name.split("."))] = tensor
    assert stored.keys() != tensors.keys()
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    content = json.loads((folder / "run.json").read_text())
    content["model_config"] = stored_options(content["model_config"])
    (folder / "run.json").write_text(json.dumps(content))
    loaded = encoder.load(library, runs.choose(library, "r"))
    clips = {saved.model.spec: noise(saved.model, 500, 600)}
    assert np.array_equal(loaded.encode(clips), saved.encode(clips))


def test_parameters_of_another_model_are_refused(library: Library) -> None:
    model = fit(small("contrastive"))
    fitted = fit_encoder(model, jackknife_clips(model, noise(model, 500, 600)))
    options = asdict(small("distilled"))
    encoder.save(library, Run("student", "distilled", options, {}, "default", {}, "", {}, {}, []), fitted)
    with pytest.raises(
        CorruptData, match=r"model\.safetensors has not the parameters of the model distilled"
    ):
        encoder.load(library, runs.choose(library, "student"))
