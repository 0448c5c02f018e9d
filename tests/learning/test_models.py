"""Every model, through the one interface."""

from __future__ import annotations

import gc
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
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from songray.audio.decode import Excerpt, read
from songray.audio.transform import SPECS, Spectrogram, compute, quantise
from songray.learning import runs
from songray.learning.embed import embed_batch, vectors
from songray.learning.loop import Totals, learner, seeded, step, validate
from songray.learning.models import MODELS
from songray.learning.models.ali import ALIConfig
from songray.learning.models.base import Batch, Embedder, LearningConfig, ModelConfig
from songray.learning.models.cae import CAE, CAEConfig
from songray.learning.models.cae2d import CAE2DConfig
from songray.learning.models.dualaxis import DualAxisConfig
from songray.learning.runs import Encoder, Run
from songray.learning.windows import Clips, jackknifed, learning_batches, placed, pooled
from songray.library import Library, matrix

SMALL = {
    "ali": {"width": 4},
    "cae": {"latent": 16, "dense_units": 64},
    "contrastive": {"widths": (16, 32)},
    "factors": {"dense_units": 64, "factors": 8},
    "pca": {"components": 4},
}
LEARNING = [name for name in MODELS if isinstance(MODELS[name](), LearningConfig)]
CPU = torch.device("cpu")


def small(name: str) -> ModelConfig:
    return MODELS[name](**SMALL.get(name, {}))


def noise(model: Embedder, *frames: int) -> list[Spectrogram]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (length, SPECS[model.spec].bins), np.uint8) for length in frames]


def fitted(config: ModelConfig) -> Embedder:
    model = seeded(config, 0).eval()
    if model.fitted:
        model.fit([torch.rand(6, model.frames, SPECS[model.spec].bins)])
    return model


def encoder_of(model: Embedder, clips: list[Spectrogram]) -> Encoder:
    return runs.fitted(model, jackknifed(model, clips))


def batches_of(clips: list[Spectrogram], model: Embedder, count: int, epoch: int = 1) -> list[Batch]:
    targets = np.random.default_rng(0).normal(size=(len(clips), model.dimension)).astype(np.float32)
    of = Clips(*[np.arange(len(clips))] * 2, clips, targets if model.target else None)
    return [placed(batch, CPU) for batch in learning_batches(of, model, count, seed=0, epoch=epoch)]


def chosen(clips: Path) -> list[Path]:
    return sorted(clips.glob("*_1.mp3"))[:6]


@pytest.fixture(scope="session")
def real(clips: Path) -> dict[str, list[Spectrogram]]:
    """Eight seconds each of six pieces of real music, by spec."""
    names = {seeded(small(name), 0).spec for name in MODELS}
    planes = [compute(read(str(file), Excerpt(8)).resampled(22050), sorted(names)) for file in chosen(clips)]
    return {name: [quantise(plane[name], SPECS[name]) for plane in planes] for name in names}


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_becomes_one_vector_whatever_its_length(name: str) -> None:
    model = fitted(small(name))
    found = pooled(model, noise(model, 600, 60, 256))
    assert found.shape == (3, model.dimension)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_vector_does_not_depend_on_its_batch(name: str) -> None:
    model = fitted(small(name))
    several = noise(model, 900, 60, 450)
    together = pooled(model, several, "mean+deviation")
    for number, clip in enumerate(several):
        assert np.array_equal(pooled(model, [clip], "mean+deviation")[0], together[number])


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_is_read_again_gives_the_same_vectors(name: str, library: Library) -> None:
    model = fitted(small(name))
    clips = noise(model, 500, 600)
    before = encoder_of(model, clips)
    run = Run("r", name, SMALL.get(name, {}), {}, "default", {}, "", {}, {}, [])
    runs.save(library, run, before)
    again = runs.load(library, runs.choose(library, "r"))
    assert np.array_equal(vectors(again, clips), vectors(before, clips))


@pytest.fixture(scope="session")
def batch_job() -> Iterator[ProcessPoolExecutor]:
    """Another process, on one thread."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawning, initializer=torch.set_num_threads, initargs=(1,)) as process:
        yield process


def embedded(library: Library, rows: pa.Table) -> np.ndarray:
    return matrix(embed_batch(rows, runs.load(library, runs.choose(library, "r")))["embedding"])


@pytest.mark.parametrize("name", MODELS)
def test_an_uploaded_clip_gets_the_vector_of_the_batch_job(
    name: str,
    clips: Path,
    real: dict[str, list[Spectrogram]],
    library: Library,
    batch_job: ProcessPoolExecutor,
) -> None:
    model = fitted(small(name))
    several = real[model.spec]
    encoder = encoder_of(model, several)
    runs.save(library, Run("r", name, SMALL.get(name, {}), {}, "default", {}, "", {}, {}, []), encoder)
    numbers = list(range(len(several)))
    cells = {"track_key": numbers, "track_id": list(map(str, numbers))}
    rows = pa.table(cells | {model.spec: [clip.tobytes() for clip in several]})
    written = batch_job.submit(embedded, library, rows)
    file = chosen(clips)[2].read_bytes()
    plane = compute(read(file, Excerpt(8)).resampled(22050), [model.spec])[model.spec]
    (uploaded,) = vectors(encoder, [quantise(plane, SPECS[model.spec])])
    assert np.abs(uploaded - written.result()[2]).max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_weights_and_leaves_the_global_ones(name: str) -> None:
    before = torch.random.get_rng_state()
    one, two = seeded(small(name), 1).state_dict(), seeded(small(name), 1).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", LEARNING)
def test_a_model_that_learns_does_and_all_its_weights_with_it(
    name: str, real: dict[str, list[Spectrogram]]
) -> None:
    torch.manual_seed(0)
    config = replace(small(name), learning_rate=1e-3)  # type: ignore[type-var]
    model = seeded(config, 0)
    learns = learner(model, config)
    batch = batches_of(real[model.spec][:4], model, count=4)[0]
    start = {key: weights.clone() for key, weights in model.named_parameters()}
    losses = []
    for _ in range(8 if len(model.optimizer_groups) == 1 else len(model.optimizer_groups)):
        losses.append(step(learns, batch)["loss"].item())
    assert np.isfinite(losses).all()
    if len(model.optimizer_groups) == 1:  # each of several players spoils the others' losses
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
    still = [key for key, weights in model.named_parameters() if torch.equal(weights, start[key])]
    assert not still


@pytest.mark.parametrize("name", LEARNING)
def test_every_weight_of_the_player_gets_a_gradient_and_no_other(name: str) -> None:
    model = seeded(small(name), 0)
    batch = batches_of(noise(model, 600, 600, 600), model, count=3)[0]
    for player in dict.fromkeys(model.optimizer_groups):
        for weights in model.parameters():
            weights.requires_grad_(True).grad = None
        mine = set(model.get_submodule(player).parameters())
        for weights in set(model.parameters()) - mine:
            weights.requires_grad_(False)
        model(batch, player)["loss"].backward()
        assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in mine)


@pytest.mark.parametrize("name", LEARNING)
def test_judging_changes_nothing(name: str) -> None:
    model = seeded(small(name), 0)
    learns = learner(model, small(name))
    batches = batches_of(noise(model, 600, 600), model, count=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measured = validate(learns, batches)
    assert np.isfinite(list(measured.values())).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def work_together(rank: int, address: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name in LEARNING:
        learn_together(name, rank, results)
    find_each_other(rank, results)
    gc.collect()  # no wrapped model may hold the process group when it is destroyed: see train_worker
    torch.distributed.destroy_process_group()


def learn_together(name: str, rank: int, results: str) -> None:
    torch.manual_seed(rank)
    config = small(name)
    model = seeded(config, 0)
    together = DistributedDataParallel(model, find_unused_parameters=len(set(model.optimizer_groups)) > 1)
    learns = learner(model, config, together)
    clips = noise(model, 600, 600, 600, 600)[2 * rank : 2 * rank + 2]
    for batch in batches_of(clips, model, count=2)[:1] * (len(model.optimizer_groups) + 1):
        step(learns, batch)
    torch.save(dict(model.named_parameters()), f"{results}/{name}-{rank}.pt")


def find_each_other(rank: int, results: str) -> None:
    model = plain_contrastive()
    together = DistributedDataParallel(model)
    batch = batches_of(noise(model, 600, 600, 600, 600), model, count=4)[0]
    mine = Batch(batch.windows[4 * rank : 4 * rank + 4], batch.recordings[4 * rank : 4 * rank + 4])
    loss = together(mine)["loss"]
    loss.backward()
    torch.save([loss.detach(), [w.grad for w in model.parameters()]], f"{results}/{rank}.pt")


def plain_contrastive() -> Embedder:
    """With the statistics of batches frozen, which differ between workers, and windows as they are."""
    return seeded(small("contrastive"), 0).eval()


@pytest.fixture(scope="session")
def learned_together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what each of two workers holds: the weights of every model after some steps, and what
    one of them found in a batch that they shared."""
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.spawn(work_together, (f"file://{folder}/meet", str(folder)), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_two_workers_hold_equal_weights_after_some_steps(name: str, learned_together: Path) -> None:
    one, two = (torch.load(learned_together / f"{name}-{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    start = dict(seeded(small(name), 0).named_parameters())
    assert not any(torch.equal(one[key], start[key]) for key in one)


@pytest.mark.slow
def test_negatives_come_from_all_workers_and_gradients_flow_back(learned_together: Path) -> None:
    (one, gradients), (two, _) = (torch.load(learned_together / f"{rank}.pt") for rank in range(2))
    model = plain_contrastive()
    loss = model(batches_of(noise(model, 600, 600, 600, 600), model, count=4)[0])["loss"]
    loss.backward()
    assert (one + two) / 2 == pytest.approx(loss.item(), abs=1e-5)
    for weights, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(weights.grad, gradient, atol=1e-5)


def test_windows_of_a_clip_find_each_other_when_they_are_alike() -> None:
    model = seeded(small("contrastive"), 0).eval()
    loud, soft = np.full((600, 128), 200, np.uint8), np.full((600, 128), 30, np.uint8)
    batch = batches_of([loud, soft], model, count=2)[0]
    assert model(batch)["found"].item() == 1


def test_the_sizes_are_those_published() -> None:
    with torch.device("meta"):
        dual = DualAxisConfig().build()
        latent = [CAE2DConfig(size).build().dimension for size in "ABC"]
    assert sum(weights.numel() for weights in dual.encoder.parameters()) == pytest.approx(1e6, rel=0.05)
    assert latent == [12 * 27 * 12, 24 * 54 * 14, 4 * 9 * 5]


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


def test_the_schedules_are_those_published() -> None:
    published = {CAEConfig: (2e-4, 32, 50), DualAxisConfig: (1e-3, 32, 20), CAE2DConfig: (5e-4, 5, 125)}
    for kind, schedule in published.items():
        assert (kind().learning_rate, kind().batch_size, kind().epochs) == schedule


def test_alis_tricks_can_be_switched_off() -> None:
    off = ALIConfig(generator_turns=1, kernel_penalty=0, smooth_labels=False, noise_variance=0)
    model = seeded(off, 0)
    assert model.optimizer_groups == ("generator", "discriminator")
    assert ALIConfig().build().optimizer_groups == ("generator",) * 4 + ("discriminator",)
    batch = batches_of(noise(model, 500), model, count=1)[0]
    pair = model.eval()(batch, "discriminator")["loss"]
    torch.manual_seed(0)
    prior = torch.randn(1, 64)
    torch.manual_seed(0)
    by_hand = model.discriminator(batch.windows, model.embed(batch.windows)).square().mean()
    by_hand = by_hand + (model.discriminator(model.draw(prior), prior) - 1).square().mean()
    assert model(batch, "discriminator")["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert pair.isfinite()


def test_unexplained_is_the_error_over_the_variance_of_the_input() -> None:
    windows = torch.rand(3, 256, 128)
    totals = Totals()
    for part in (windows[:2], windows[2:]):  # drawing the mean explains nothing
        error = (part - windows.mean()).square().mean()
        totals.add(Batch(part, torch.zeros(len(part))), {"loss": error, "squared_error": error})
    assert totals.means()["unexplained"] == pytest.approx(1, abs=1e-4)


def test_mfcc_are_those_of_librosa() -> None:
    model = seeded(MODELS["mfcc"](), 0)
    (clip,) = noise(model, 500)
    cepstra = librosa.feature.mfcc(S=clip.T / 255, n_mfcc=20)
    expected = np.concatenate([cepstra.mean(1), cepstra.std(1)])
    assert np.allclose(pooled(model, [clip])[0], expected, atol=1e-4)


def test_pca_in_batches_is_that_of_all_at_once() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(60, 3)) @ random.normal(size=(3, 216 * 128)) * [5]
    windows = torch.from_numpy(hidden).float().view(60, 216, 128)
    model = seeded(MODELS["pca"](components=3), 0)
    model.fit(windows.split(7))
    assert torch.allclose(model.draw(model.embed(windows)), windows, atol=1e-2)


def test_a_compiled_model_learns_as_itself() -> None:
    model = seeded(small("contrastive"), 0)
    learns = learner(model, small("contrastive"), torch.compile(model, backend="eager"))
    batch = batches_of(noise(model, 600, 600, 600, 600), model, count=4)[0]
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    assert step(learns, batch)["loss"].isfinite()
    assert not all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
