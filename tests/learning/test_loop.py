"""The loop that trains any model: its limits, and the state from which it resumes."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed
from small_models import batches_of, noise, small
from torch.nn.parallel import DistributedDataParallel

from songray.learning.loop import (
    Diverged,
    Learner,
    Limits,
    build_learner,
    build_model,
    load_weights,
    resume,
    run_epoch,
    save_state,
    step,
)
from songray.learning.models.base import Batch

CURVE = [{"epoch": 1, "steps": 5, "seconds": 2.0}]


def new_learner(name: str) -> Learner:
    return build_learner(build_model(small(name), 0), small(name))


def new_wrapped_learner(name: str) -> Learner:
    model = build_model(small(name), 0)
    wrapped = DistributedDataParallel(model, find_unused_parameters=len(set(model.optimizer_groups)) > 1)
    return build_learner(model, small(name), wrapped)


def take_steps(learner: Learner, batch: Batch, numbers: range) -> list[float]:
    """The losses of some steps, whose random numbers depend on the number of the step."""
    losses = []
    for number in numbers:
        torch.manual_seed(number)
        losses.append(step(learner, batch)["loss"].item())
    return losses


def batch_for(learner: Learner) -> Batch:
    return batches_of(noise(learner.model, 600, 600), learner.model, clips=2)[0]


def assert_equal_weights(learner: Learner, other: Learner) -> None:
    weights, others = learner.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    gc.collect()  # a wrapped model must not outlive the process group: see worker.train_worker
    torch.distributed.destroy_process_group()


# ALI has two optimizer groups, of which the second makes its first step after four of the first one.
@pytest.mark.parametrize(("name", "steps"), [("cae", 2), ("contrastive", 2), ("ali", 3), ("ali", 6)])
def test_a_resumed_training_takes_the_same_steps_as_an_unbroken_one(
    name: str, steps: int, tmp_path: Path
) -> None:
    unbroken, interrupted = new_learner(name), new_learner(name)
    batch = batch_for(unbroken)
    for learner in (unbroken, interrupted):
        take_steps(learner, batch, range(steps))
    save_state(tmp_path, interrupted, [{"epoch": 1, "steps": steps}])
    resumed = new_learner(name)
    assert resume(resumed, tmp_path, name) == [{"epoch": 1, "steps": steps}]
    assert resumed.steps == steps
    expected = take_steps(unbroken, batch, range(steps, steps + 4))
    assert take_steps(resumed, batch, range(steps, steps + 4)) == expected
    assert_equal_weights(resumed, unbroken)
    assert take_steps(interrupted, batch, range(steps, steps + 4)) == expected  # saving changes nothing


@pytest.mark.parametrize("name", ["cae", "ali"])
@pytest.mark.usefixtures("process_group")
def test_a_training_in_a_process_group_resumes_alike(name: str, tmp_path: Path) -> None:
    unbroken = new_wrapped_learner(name)
    batch = batch_for(unbroken)
    take_steps(unbroken, batch, range(5))
    save_state(tmp_path, unbroken, CURVE)
    resumed, alone = new_wrapped_learner(name), new_learner(name)
    for learner in (resumed, alone):  # the files are the same, wrapped or not
        resume(learner, tmp_path, name)
    expected = take_steps(unbroken, batch, range(5, 8))
    assert take_steps(resumed, batch, range(5, 8)) == expected
    assert_equal_weights(resumed, unbroken)
    assert take_steps(alone, batch, range(5, 8)) == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_holds_safetensors_and_json_alone(tmp_path: Path) -> None:
    learner = new_learner("ali")
    take_steps(learner, batch_for(learner), range(2))
    save_state(tmp_path, learner, CURVE)
    for path in tmp_path.iterdir():
        if path.suffix == ".safetensors":
            assert safetensors.torch.load_file(path)
        else:
            assert path.suffix == ".json" and json.loads(path.read_text())


def test_a_checkpoint_of_an_earlier_version_resumes_with_new_optimizers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = new_learner("contrastive")
    take_steps(learner, batch_for(learner), range(5))
    weights = learner.model.state_dict()
    stored = {name.replace("residual", "found"): weight.contiguous() for name, weight in weights.items()}
    assert stored.keys() != weights.keys()
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors")
    safetensors.torch.save_file({"/0/step": torch.tensor(5.0)}, tmp_path / "moments.safetensors")
    (tmp_path / "curve.json").write_text(json.dumps(CURVE))
    resumed = new_learner("contrastive")
    assert resume(resumed, tmp_path, "contrastive") == CURVE
    assert "earlier version of songray: training resumes with its weights, and with new" in (
        capsys.readouterr().out
    )
    assert_equal_weights(resumed, learner)
    assert resumed.steps == 5 and not resumed.optimizers[""].state
    assert load_weights(tmp_path, "contrastive").keys() == weights.keys()


def test_an_epoch_ends_at_the_limit_of_seconds() -> None:
    learner = new_learner("cae")
    clock = count().__next__  # each look at it is a second later
    metrics = run_epoch(learner, [batch_for(learner)] * 50, Limits(50, seconds=20, clock=clock), {})
    assert 1 <= metrics["steps"] < 50
    assert metrics["seconds"] > 20 and metrics["epoch"] == 1


def test_the_next_epoch_continues_its_counts() -> None:
    learner = new_learner("cae")
    first = run_epoch(learner, [batch_for(learner)] * 2, Limits(4), {})
    second = run_epoch(learner, [batch_for(learner)] * 2, Limits(4), first)
    assert (second["epoch"], second["steps"]) == (2, 4)
    assert second["seconds"] > first["seconds"]
    assert second["loss"] < first["loss"]


def test_an_infinite_loss_is_reported_with_its_step() -> None:
    learner = new_learner("cae")
    batch = batch_for(learner)
    broken = batch._replace(windows=batch.windows * float("inf"))
    with pytest.raises(Diverged, match="not finite in epoch 1, step 2"):
        run_epoch(learner, [batch, broken], Limits(2), {})
