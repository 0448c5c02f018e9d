"""Every model, through the one interface."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch

from songray.models import MODELS
from songray.models.base import LearningConfig
from songray.models.cae import CAE, CAEConfig
from songray.segments import pooled, scaled
from songray.training import Totals, seeded, step

SMALL = {"cae": {"latent": 16, "dense_units": 64}, "random": {"latent": 16}, "mfcc": {}}


@pytest.fixture(params=MODELS)
def config(request: pytest.FixtureRequest) -> object:
    return MODELS[request.param](**SMALL[request.param])


def clips(*frames: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (length, 128), np.uint8) for length in frames]


def test_a_clip_becomes_one_vector_whatever_its_length(config: object) -> None:
    model = seeded(config, 0).eval()
    vectors = pooled(model, clips(1292, 100, 256, 600))
    assert vectors.shape == (4, model.dimension)
    assert np.isfinite(vectors).all()


def test_a_vector_does_not_depend_on_its_batch(config: object) -> None:
    model = seeded(config, 0).eval()
    several = clips(1292, 300, 900, 2000)
    together = pooled(model, several)
    for number, clip in enumerate(several):
        alone = pooled(model, [clip])[0]
        assert np.array_equal(alone, together[number])


def test_a_seed_gives_the_same_weights_and_leaves_the_global_ones(config: object) -> None:
    before = torch.random.get_rng_state()
    one, two = seeded(config, 1).state_dict(), seeded(config, 1).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", [name for name in MODELS if isinstance(MODELS[name](), LearningConfig)])
def test_a_model_that_learns_does(name: str) -> None:
    model = seeded(MODELS[name](**SMALL[name]), 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    windows = torch.from_numpy(np.stack(clips(256, 256, 256, 256)) // 8 + 100)
    losses = [step(model, optimizer, windows)["loss"].item() for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_cae_has_the_published_layers() -> None:
    with torch.device("meta"):
        model = CAE(CAEConfig())
    shapes = [tuple(weights.shape) for name, weights in model.named_parameters() if name.endswith("weight")]
    assert shapes == [
        (256, 128, 2), (256, 256, 2), (512, 256, 2),  # convolutions over time
        (2048, 16384), (2048, 2048), (2048, 2048), (256, 2048),
        (2048, 256), (2048, 2048), (16384, 2048),
        (512, 512, 2), (512, 256, 2), (256, 128, 2),  # transposed: (in, out, kernel)
    ]  # fmt: skip
    config = CAEConfig()
    assert (config.learning_rate, config.batch_size, config.epochs) == (2e-4, 32, 50)
    assert model.frames == 256


def test_unexplained_is_the_error_over_the_variance_of_the_input() -> None:
    windows = torch.from_numpy(np.stack(clips(256, 256, 256)))
    mean = scaled(windows).mean()
    totals = Totals()
    for part in (windows[:2], windows[2:]):  # drawing the mean explains nothing
        error = (scaled(part) - mean).square().mean()
        totals.add(part, {"loss": error, "squared_error": error})
    assert totals.means()["unexplained"] == pytest.approx(1, abs=1e-4)


def test_mfcc_are_those_of_librosa() -> None:
    (clip,) = clips(500)
    cepstra = librosa.feature.mfcc(S=clip.T / 255, n_mfcc=20)
    expected = np.concatenate([cepstra.mean(1), cepstra.std(1)])
    assert np.allclose(pooled(seeded(MODELS["mfcc"](), 0), [clip])[0], expected, atol=1e-4)
