"""Every trained model on two workers with DistributedDataParallel."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from small_models import TRAINED, batches_of, noise, small
from torch.nn.parallel import DistributedDataParallel

from songray.learning.loop import build_learner, build_model, step
from songray.learning.models.base import Batch, Embedder


def run_worker(rank: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name in TRAINED:
        train_some_steps(name, rank, folder)
    compute_gradients(rank, folder)
    gc.collect()  # no wrapped model may hold the process group when it is destroyed: see worker.train_worker
    torch.distributed.destroy_process_group()


def train_some_steps(name: str, rank: int, folder: str) -> None:
    """Saves the parameters. The wrapped model is local, so that nothing refers to it afterwards."""
    torch.manual_seed(rank)
    config = small(name)
    model = build_model(config, 0)
    wrapped = DistributedDataParallel(model, find_unused_parameters=len(set(model.optimizer_groups)) > 1)
    learner = build_learner(model, config, wrapped)
    spectrograms = noise(model, 600, 600, 600, 600)[2 * rank : 2 * rank + 2]
    for batch in batches_of(spectrograms, model, clips=2)[:1] * (len(model.optimizer_groups) + 1):
        step(learner, batch)
    torch.save(dict(model.named_parameters()), f"{folder}/{name}-{rank}.pt")


def compute_gradients(rank: int, folder: str) -> None:
    """Saves the loss of `contrastive` on this worker's half of a batch, and the gradients."""
    model = contrastive()
    wrapped = DistributedDataParallel(model)
    batch = batches_of(noise(model, 600, 600, 600, 600), model, clips=4)[0]
    half = slice(4 * rank, 4 * rank + 4)
    loss = wrapped(Batch(batch.windows[half], batch.recordings[half]))["loss"]
    loss.backward()
    gradients = [weights.grad for weights in model.parameters()]
    torch.save([loss.detach(), gradients], f"{folder}/{rank}.pt")


def contrastive() -> Embedder:
    """In evaluation mode: batch statistics would differ between workers, and windows be augmented."""
    return build_model(small("contrastive"), 0).eval()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of both workers."""
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(run_worker, (f"file://{folder}/store", str(folder)), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_two_workers_hold_equal_weights_after_some_steps(name: str, results: Path) -> None:
    first, second = (torch.load(results / f"{name}-{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    start = dict(build_model(small(name), 0).named_parameters())
    assert not any(torch.equal(first[key], start[key]) for key in first)


@pytest.mark.slow
def test_negatives_come_from_all_workers_with_their_gradients(results: Path) -> None:
    (first, gradients), (second, _) = (torch.load(results / f"{rank}.pt") for rank in range(2))
    model = contrastive()
    loss = model(batches_of(noise(model, 600, 600, 600, 600), model, clips=4)[0])["loss"]
    loss.backward()
    assert (first + second) / 2 == pytest.approx(loss.item(), abs=1e-5)
    for weights, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(weights.grad, gradient, atol=1e-5)
