"""Every model, through the interface that all share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pytest
import torch
from small_models import NAMES, OPTIONS, TRAINED, batches_of, fit, noise, small

from songray.audio.decode import Recording, decode
from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import SPECS, Spectrogram, compute, quantise
from songray.errors import InvalidOption
from songray.learning import runs
from songray.learning.embed import embed_batch
from songray.learning.encoder import Encoder, ModelEncoder, fit_encoder, load, save
from songray.learning.loop import Totals, build_learner, build_model, step, validate
from songray.learning.models import MODELS
from songray.learning.models.base import Batch, Embedder
from songray.learning.models.build import build
from songray.learning.models.options import ALIConfig, CAE2DConfig, CAEConfig, DualAxisConfig
from songray.learning.runs import Run
from songray.learning.windows import embed_clips, jackknife_clips
from songray.library import Library, matrix


def encoder_of(model: Embedder, spectrograms: list[Spectrogram]) -> ModelEncoder:
    return fit_encoder(model, jackknife_clips(model, spectrograms))


def save_run(library: Library, name: str, encoder: ModelEncoder) -> None:
    save(library, Run("r", name, OPTIONS.get(name, {}), {}, "default", {}, "", {}, {}, []), encoder)


def load_run(library: Library) -> Encoder:
    return load(library, runs.choose(library, "r"))


def music_files(clips: Path) -> list[Path]:
    return sorted(clips.glob("*_1.mp3"))[:6]


@pytest.fixture(scope="session")
def music(clips: Path) -> dict[str, list[Spectrogram]]:
    """The spectrograms of eight seconds each of six pieces, by spec."""
    names = sorted({build_model(small(name), 0).spec for name in NAMES})
    recordings = [decode(str(file), Excerpt(8)) for file in music_files(clips)]
    return {name: [spectrogram(recording, name) for recording in recordings] for name in names}


def spectrogram(recording: Recording, name: str) -> Spectrogram:
    return quantise(compute(recording.resampled(SPECS[name].rate), [name])[name], SPECS[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_of_any_length_gives_one_vector(name: str) -> None:
    model = fit(small(name))
    embedded = embed_clips(model, noise(model, 600, 60, 256))
    assert embedded.shape == (3, model.dimension)
    assert np.isfinite(embedded).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_does_not_depend_on_its_batch(name: str) -> None:
    model = fit(small(name))
    spectrograms = noise(model, 900, 60, 450)
    together = embed_clips(model, spectrograms, "mean+deviation")
    for number, spectrogram in enumerate(spectrograms):
        assert np.array_equal(embed_clips(model, [spectrogram], "mean+deviation")[0], together[number])


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_run_gives_the_same_vectors(name: str, library: Library) -> None:
    model = fit(small(name))
    spectrograms = noise(model, 500, 600)
    encoder = encoder_of(model, spectrograms)
    save_run(library, name, encoder)
    by_spec = {model.spec: spectrograms}
    assert np.array_equal(load_run(library).encode(by_spec), encoder.encode(by_spec))


@pytest.fixture(scope="session")
def batch_job() -> Iterator[ProcessPoolExecutor]:
    """Another process, with one thread."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,)) as process:
        yield process


def embed_rows(library: Library, rows: pa.Table) -> np.ndarray:
    return matrix(embed_batch(rows, load_run(library))["embedding"])


@pytest.mark.parametrize("name", NAMES)
def test_an_uploaded_clip_gets_the_vector_of_the_batch_job(
    name: str,
    clips: Path,
    music: dict[str, list[Spectrogram]],
    library: Library,
    batch_job: ProcessPoolExecutor,
) -> None:
    model = fit(small(name))
    spectrograms = music[model.spec]
    encoder = encoder_of(model, spectrograms)
    save_run(library, name, encoder)
    numbers = list(range(len(spectrograms)))
    columns = {"track_key": numbers, "track_id": list(map(str, numbers))}
    rows = pa.table(columns | {model.spec: [spectrogram.tobytes() for spectrogram in spectrograms]})
    written = batch_job.submit(embed_rows, library, rows)
    file = music_files(clips)[2].read_bytes()
    (uploaded,) = encoder.encode({model.spec: [spectrogram(decode(file, Excerpt(8)), model.spec)]})
    assert np.abs(uploaded - written.result()[2]).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_weights_and_keeps_the_global_generator(name: str) -> None:
    before = torch.random.get_rng_state()
    first, second = build_model(small(name), 1).state_dict(), build_model(small(name), 1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss_and_changes_every_weight(
    name: str, music: dict[str, list[Spectrogram]]
) -> None:
    torch.manual_seed(0)
    config = replace(small(name), learning_rate=1e-3)  # type: ignore[type-var]
    model = build_model(config, 0)
    learner = build_learner(model, config)
    batch = batches_of(music[model.spec][:4], model, clips=4)[0]
    start = {key: weights.clone() for key, weights in model.named_parameters()}
    adversarial = len(model.optimizer_groups) > 1
    steps = len(model.optimizer_groups) if adversarial else 8
    losses = [step(learner, batch)["loss"].item() for _ in range(steps)]
    assert np.isfinite(losses).all()
    if not adversarial:  # else a step of one group raises the loss of another
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert not [key for key, weights in model.named_parameters() if torch.equal(weights, start[key])]


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_of_a_group_has_a_gradient_for_each_of_its_weights(name: str) -> None:
    model = build_model(small(name), 0)
    batch = batches_of(noise(model, 600, 600, 600), model, clips=3)[0]
    for group in dict.fromkeys(model.optimizer_groups):
        for weights in model.parameters():
            weights.requires_grad_(True).grad = None
        own = set(model.get_submodule(group).parameters())
        for weights in set(model.parameters()) - own:
            weights.requires_grad_(False)
        model(batch, group)["loss"].backward()
        assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in own)


@pytest.mark.parametrize("name", TRAINED)
def test_validation_changes_nothing(name: str) -> None:
    model = build_model(small(name), 0)
    learner = build_learner(model, small(name))
    batches = batches_of(noise(model, 600, 600), model, clips=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    metrics = validate(learner, batches)
    assert np.isfinite(list(metrics.values())).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_windows_of_two_uniform_clips_are_nearest_to_their_own_recording() -> None:
    model = build_model(small("contrastive"), 0).eval()
    loud, soft = np.full((600, 128), 200, np.uint8), np.full((600, 128), 30, np.uint8)
    batch = batches_of([loud, soft], model, clips=2)[0]
    assert model(batch)["top1_accuracy"].item() == 1


def test_the_sizes_are_those_published() -> None:
    with torch.device("meta"):
        dual = build(DualAxisConfig())
        latent = [build(CAE2DConfig(size)).dimension for size in "ABC"]
    assert sum(weights.numel() for weights in dual.encoder.parameters()) == pytest.approx(1e6, rel=0.05)
    assert latent == [12 * 27 * 12, 24 * 54 * 14, 4 * 9 * 5]


def test_the_cae_has_the_published_layers() -> None:
    with torch.device("meta"):
        model = build(CAEConfig())
    shapes = [tuple(weights.shape) for name, weights in model.named_parameters() if name.endswith("weight")]
    assert shapes == [
        (256, 128, 2), (256, 256, 2), (512, 256, 2),  # convolutions over time
        (2048, 16384), (2048, 2048), (2048, 2048), (256, 2048),
        (2048, 256), (2048, 2048), (16384, 2048),
        (512, 512, 2), (512, 256, 2), (256, 128, 2),  # transposed: (in, out, kernel)
    ]  # fmt: skip


def test_the_schedules_are_those_published() -> None:
    published = {CAEConfig: (2e-4, 32, 50), DualAxisConfig: (1e-3, 32, 20), CAE2DConfig: (5e-4, 5, 125)}
    for config, schedule in published.items():
        assert (config().learning_rate, config().batch_size, config().epochs) == schedule


def test_the_measures_for_convergence_of_ali_can_be_disabled() -> None:
    options = ALIConfig(generator_steps=1, kernel_penalty=0, smooth_labels=False, noise_variance=0)
    model = build_model(options, 0)
    assert model.optimizer_groups == ("generator", "discriminator")
    assert build(ALIConfig()).optimizer_groups == ("generator",) * 4 + ("discriminator",)
    batch = batches_of(noise(model, 500), model, clips=1)[0]
    assert model.eval()(batch, "discriminator")["loss"].isfinite()
    torch.manual_seed(0)
    prior = torch.randn(1, 64)
    torch.manual_seed(0)
    expected = model.discriminator(batch.windows, model.embed(batch.windows)).square().mean()
    expected = expected + (model.discriminator(model.decode(prior), prior) - 1).square().mean()
    assert model(batch, "discriminator")["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_unexplained_is_the_error_over_the_variance_of_the_input() -> None:
    windows = torch.rand(3, 256, 128)
    totals = Totals()
    for part in (windows[:2], windows[2:]):  # a reconstruction by the mean explains nothing
        error = (part - windows.mean()).square().mean()
        totals.add(Batch(part, torch.zeros(len(part))), {"loss": error, "squared_error": error})
    assert totals.means()["unexplained"] == pytest.approx(1, abs=1e-4)


def test_mfccs_are_those_of_librosa() -> None:
    model = build_model(MODELS["mfcc"](), 0)
    (spectrogram,) = noise(model, 500)
    cepstra = librosa.feature.mfcc(S=spectrogram.T / 255, n_mfcc=20)
    expected = np.concatenate([cepstra.mean(1), cepstra.std(1)])
    assert np.allclose(embed_clips(model, [spectrogram])[0], expected, atol=1e-4)


def test_an_incremental_pca_reconstructs_data_of_its_rank() -> None:
    random = np.random.default_rng(0)
    data = random.normal(size=(60, 3)) @ random.normal(size=(3, 216 * 128)) * [5]
    windows = torch.from_numpy(data).float().view(60, 216, 128)
    model = build_model(MODELS["pca"](components=3), 0)
    model.fit(windows.split(7))
    assert torch.allclose(model.decode(model.embed(windows)), windows, atol=1e-2)


def test_pca_refuses_fewer_windows_than_components() -> None:
    model = build_model(small("pca"), 0)
    with pytest.raises(InvalidOption, match="3 windows are too few for 4 components: lower --components"):
        model.fit([torch.rand(1, 216, 128), torch.rand(2, 216, 128)])


def test_a_compiled_model_is_trained() -> None:
    model = build_model(small("contrastive"), 0)
    learner = build_learner(model, small("contrastive"), torch.compile(model, backend="eager"))
    batch = batches_of(noise(model, 600, 600, 600, 600), model, clips=4)[0]
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    assert step(learner, batch)["loss"].isfinite()
    assert not all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
