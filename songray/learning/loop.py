"""The loop that trains any model: a step, an epoch, validation, and the state from which it resumes.

It uses torch alone, and runs on one worker or, in a process group, on many.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from songray.learning.models.base import Batch, Embedder
from songray.learning.models.build import build
from songray.learning.models.config import LearningConfig, ModelConfig
from songray.learning.models.formats import current_parameters

SECONDS_BETWEEN_REPORTS = 20.0
GPU_STEPS_BETWEEN_CHECKS = 16  # reading the loss waits for the GPU

Weights = dict[str, torch.Tensor]
Metrics = dict[str, float]
Curve = list[Metrics]  # one row an epoch
WEIGHTS, CURVE = "model.safetensors", "curve.json"
OPTIMIZER_TENSORS, OPTIMIZER_OPTIONS = "optimizer.safetensors", "optimizer.json"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Diverged(ArithmeticError):
    """The loss is not finite."""


@dataclass
class Learner:
    """All state that training changes: a model, and an optimizer for each of its optimizer groups.

    `wrapped` computes the forward pass: it is the model itself, compiled, or in DistributedDataParallel.
    """

    model: Embedder
    wrapped: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    learning_rate: float
    bf16: bool = False
    steps: int = 0

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True)
class Limits:
    """Where a training ends."""

    steps: int  # over all epochs
    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic


def build_model(model_config: ModelConfig, seed: int, weights: Weights | None = None) -> Embedder:
    """The model, with weights initialised under a seed or with those given; the global generator keeps its
    state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(model_config)
    if weights is not None:
        model.load_state_dict(weights)
    return model


def build_learner(
    model: Embedder, config: LearningConfig, wrapped: nn.Module | None = None, bf16: bool = False
) -> Learner:
    """The learner of a model that is on its device already."""
    groups = dict.fromkeys(model.optimizer_groups)
    optimizers = {group: model.optimizer(group, config.learning_rate) for group in groups}
    return Learner(model, model if wrapped is None else wrapped, optimizers, config.learning_rate, bf16)


def run_epoch(learner: Learner, batches: Iterable[Batch], limits: Limits, previous: Metrics) -> Metrics:
    """Train on the batches of an epoch, or until the limit of seconds; returns means over all workers.

    `previous` has the metrics of the epoch before, or is empty. Raises Diverged where a loss is not finite.
    """
    start, epoch = previous.get("seconds", 0.0), int(previous.get("epoch", 0)) + 1
    elapsed = _stopwatch(limits.clock, start)
    seconds = printed = waits_since = start
    waited, totals = 0.0, Totals()
    for batch in batches:
        waited += elapsed() - waits_since
        progress = max(learner.steps / limits.steps, seconds / limits.seconds)
        totals.add(batch, step(learner, batch, min(progress, 1.0)))
        if learner.device.type == "cpu" or learner.steps % GPU_STEPS_BETWEEN_CHECKS == 0:
            loss = totals.local("loss")
            seconds, diverged = all_reduce_max([elapsed(), float(not math.isfinite(loss))], learner.device)
            if diverged:
                raise Diverged(f"the loss was not finite in epoch {epoch}, step {learner.steps}")
            if seconds > limits.seconds:
                break
            if seconds - printed > SECONDS_BETWEEN_REPORTS and is_first():
                printed = seconds
                print(f"epoch {epoch}: step {learner.steps}, loss {loss:.5f}", flush=True)
        waits_since = elapsed()
    means = totals.means()
    if not math.isfinite(means["loss"]):
        raise Diverged(f"the loss was not finite in epoch {epoch}")
    seconds = elapsed()
    return {
        "epoch": epoch,
        "steps": learner.steps,
        "seconds": seconds,
        "windows_per_second": means.pop("windows") / (seconds - start),
        "waiting": waited / (seconds - start),  # share of the time in which no batch was ready
        **means,
    }


def _stopwatch(clock: Callable[[], float], start: float) -> Callable[[], float]:
    """Seconds since this call, plus `start`."""
    began = clock() - start
    return lambda: clock() - began


def step(learner: Learner, batch: Batch, progress: float = 0.0) -> dict[str, torch.Tensor]:
    """One step of the next optimizer group; `progress` is the share of the training that is done."""
    model = learner.model
    group = model.optimizer_groups[learner.steps % len(model.optimizer_groups)]
    optimizer = learner.optimizers[group]
    learning_rate = learner.learning_rate * model.learning_rate_factor(progress)
    for options in optimizer.param_groups:
        options["lr"] = learning_rate * options.get("factor", 1.0)
    set_trainable(model, group)
    with learner.autocast():
        losses: dict[str, torch.Tensor] = learner.wrapped(batch, group)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    weights = list(model.get_submodule(group).parameters())
    # By dot products, at the speed of memory: torch.nn.utils.get_total_norm takes twice as long on a CPU.
    gradients = [weight.grad.flatten() for weight in weights if weight.grad is not None]
    norm = torch.stack([gradient.dot(gradient) for gradient in gradients]).sum().sqrt()
    if model.max_gradient_norm:
        nn.utils.clip_grads_with_norm_(weights, model.max_gradient_norm, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    learner.steps += 1
    measured = {"gradient_norm": norm, "learning_rate": torch.tensor(learning_rate, device=norm.device)}
    return {name: value.detach() for name, value in (losses | measured).items()}


def set_trainable(model: Embedder, group: str) -> None:
    """Freeze the parameters of the other optimizer groups."""
    for other in set(model.optimizer_groups) - {group}:
        model.get_submodule(other).requires_grad_(False)
    model.get_submodule(group).requires_grad_(True)


@torch.no_grad()
def validate(learner: Learner, batches: Iterable[Batch]) -> Metrics:
    """The losses on tracks of the validation part, as `validation_…`: means over all workers."""
    totals = Totals()
    learner.model.eval()
    for batch in batches:
        losses: dict[str, torch.Tensor] = {}
        for group in dict.fromkeys(learner.model.optimizer_groups):
            with learner.autocast():
                losses = learner.model(batch, group) | losses
        totals.add(batch, losses)
    learner.model.train()
    return {f"validation_{name}": value for name, value in totals.means().items() if name != "windows"}


class Totals:
    """Sums of metrics over windows. They stay on the device, so that adding does not wait for it."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}  # (2,): of the metric, and of the windows

    def add(self, batch: Batch, losses: dict[str, torch.Tensor]) -> None:
        values = dict(losses)
        if "squared_error" in losses:
            values |= {"input": batch.windows.mean(), "input_squared": batch.windows.square().mean()}
        for name, value in values.items():
            count = torch.ones((), dtype=torch.float64, device=batch.windows.device)
            sums = torch.stack([value.detach().double(), count]) * len(batch.windows)
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def local(self, name: str) -> float:
        """The mean over the windows of this worker."""
        total, windows = self.sums[name].tolist()
        return float(total / windows)

    def means(self) -> Metrics:
        """Means over the windows of all workers, and the number of `windows`. Where the model returns its
        squared error, also `unexplained`, its share of the variance of the input: it compares models whose
        inputs have different scales."""
        sums = dict(zip(self.sums, all_reduce_sum(list(self.sums.values())), strict=True))
        means = {name: total / windows for name, (total, windows) in sums.items()}
        if "squared_error" in means:
            variance = means.pop("input_squared") - means.pop("input") ** 2
            means["unexplained"] = means.pop("squared_error") / max(variance, 1e-12)
        return means | {"windows": sums["loss"][1]}


def all_reduce_sum(values: list[torch.Tensor]) -> list[list[float]]:
    """The sums of tensors of equal shape over all workers."""
    stacked = torch.stack(values)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(stacked)
    sums: list[list[float]] = stacked.tolist()
    return sums


def all_reduce_max(values: list[float], device: torch.device) -> list[float]:
    """The largest of each value over all workers, so that all of them take the same decision."""
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    numbers: list[float] = largest.tolist()
    return numbers


def is_first() -> bool:
    """Whether this worker has rank 0, and so reports for all."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def save_state(folder: Path, learner: Learner, curve: Curve) -> None:
    """Write weights, optimizer state and curve, as safetensors and JSON: no file is unpickled."""
    weights = {name: tensor.contiguous() for name, tensor in learner.model.state_dict().items()}
    tensors: Weights = {}
    options: dict[str, dict[str, Any]] = {}
    for group, optimizer in learner.optimizers.items():
        if not optimizer.state:  # no step of this group yet; torch would make one to initialise its state
            continue
        state: dict[str, Any] = get_optimizer_state_dict(learner.model, optimizer, options=FLAT)
        tensors |= {name: x.contiguous() for name, x in state.items() if isinstance(x, torch.Tensor)}
        options[group] = {name: x for name, x in state.items() if not isinstance(x, torch.Tensor)}
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    safetensors.torch.save_file(tensors, folder / OPTIMIZER_TENSORS)
    (folder / OPTIMIZER_OPTIONS).write_text(json.dumps(options))
    (folder / CURVE).write_text(json.dumps(curve))


def resume(learner: Learner, folder: Path, model_name: str) -> Curve:
    """Load what save_state wrote into a new learner; returns the curve. An earlier version wrote the
    optimizer state in another format: then the optimizers start anew."""
    learner.model.load_state_dict(load_weights(folder, model_name))
    curve = load_curve(folder)
    learner.steps = int(curve[-1]["steps"])
    if not (folder / OPTIMIZER_OPTIONS).exists():
        if is_first():
            print(
                f"the checkpoint of epoch {len(curve)} was written by an earlier version of songray: "
                "training resumes with its weights, and with new optimizers",
                flush=True,
            )
        return curve
    tensors = safetensors.torch.load_file(folder / OPTIMIZER_TENSORS)
    for group, options in json.loads((folder / OPTIMIZER_OPTIONS).read_text()).items():
        optimizer = learner.optimizers[group]
        set_optimizer_state_dict(learner.model, optimizer, tensors | options, options=FLAT)
    return curve


def load_weights(folder: Path, model_name: str) -> Weights:
    return current_parameters(model_name, safetensors.torch.load_file(folder / WEIGHTS))


def load_curve(folder: Path) -> Curve:
    curve: Curve = json.loads((folder / CURVE).read_text())
    return curve
