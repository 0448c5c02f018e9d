"""The loop that trains any model: a step, an epoch, a judgement; with torch alone, on one worker or many."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from songray.learning.models.base import Batch, Embedder, LearningConfig, ModelConfig

SECONDS_BETWEEN_LINES = 20.0
GPU_STEPS_BETWEEN_LOOKS = 16  # a look at the loss waits for the GPU

Weights = dict[str, torch.Tensor]
Metrics = dict[str, float]
Curve = list[Metrics]  # one row an epoch
WEIGHTS, MOMENTS, CURVE = "model.safetensors", "moments.safetensors", "curve.json"


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


@dataclass
class Learner:
    """All that training changes: a model, and an optimizer for each of its players.

    `called` is the model as it is called: itself, compiled, or wrapped to work with other workers.
    """

    model: Embedder
    called: nn.Module
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

    steps: int  # of the whole training
    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic  # that counts them


def learner(
    model: Embedder, config: LearningConfig, called: nn.Module | None = None, bf16: bool = False
) -> Learner:
    """`model` lies on its device; `called` is what wraps it, if anything does."""
    players = dict.fromkeys(model.optimizer_groups)
    optimizers = {player: model.optimizer(player, config.learning_rate) for player in players}
    return Learner(model, model if called is None else called, optimizers, config.learning_rate, bf16)


def seeded(model_config: ModelConfig, seed: int, weights: Weights | None = None) -> Embedder:
    """The model with weights drawn under a seed, or with those given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_config.build()
    if weights is not None:
        model.load_state_dict(weights)
    return model


def run_epoch(learner: Learner, batches: Iterable[Batch], limits: Limits, before: Metrics) -> Metrics:
    """Train on an epoch's batches, until the limit of seconds; what was measured, as means over all workers.

    `before` is what the epoch before gave, or nothing. Raises Diverged where the loss is no number.
    """
    spent, number = before.get("seconds", 0.0), int(before.get("epoch", 0)) + 1
    seconds_at = _since(limits.clock, spent)
    seconds, told, asked, waited = spent, spent, spent, 0.0
    totals = Totals()
    for batch in batches:
        waited += seconds_at() - asked
        done = max(learner.steps / limits.steps, seconds / limits.seconds)
        totals.add(batch, step(learner, batch, min(done, 1.0)))
        if learner.device.type == "cpu" or learner.steps % GPU_STEPS_BETWEEN_LOOKS == 0:
            loss = totals.here("loss")
            seconds, is_bad = worst(seconds_at(), loss, learner.device)
            if is_bad:
                raise Diverged(f"the loss was no number in epoch {number}, step {learner.steps}")
            if seconds > limits.seconds:
                break
            if seconds - told > SECONDS_BETWEEN_LINES and is_first():
                told = seconds
                print(f"epoch {number}: step {learner.steps}, loss {loss:.5f}", flush=True)
        asked = seconds_at()
    means = totals.means()
    if not math.isfinite(means["loss"]):
        raise Diverged(f"the loss was no number in epoch {number}")
    seconds = seconds_at()
    return {
        "epoch": number,
        "steps": learner.steps,
        "seconds": seconds,
        "windows_per_second": means.pop("windows") / (seconds - spent),
        "waiting": waited / (seconds - spent),  # the share of the time without a batch to work on
        **means,
    }


def _since(clock: Callable[[], float], start: float) -> Callable[[], float]:
    """Seconds from now on, counted from `start`."""
    began = clock() - start
    return lambda: clock() - began


def step(learner: Learner, batch: Batch, progress: float = 0.0) -> dict[str, torch.Tensor]:
    """One step of the player whose turn it is; `progress` is the share of the training that is done."""
    model = learner.model
    player = model.optimizer_groups[learner.steps % len(model.optimizer_groups)]
    optimizer = learner.optimizers[player]
    rate = learner.learning_rate * model.rate(progress)
    for group in optimizer.param_groups:
        group["lr"] = rate
    let_learn(model, player)
    with learner.autocast():
        losses: dict[str, torch.Tensor] = learner.called(batch, player)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    weights = list(model.get_submodule(player).parameters())
    # By dot products, which read as fast as memory gives: torch's own norm takes twice as long on a CPU.
    gradients = [one.grad.flatten() for one in weights if one.grad is not None]
    norm = torch.stack([one.dot(one) for one in gradients]).sum().sqrt()
    if model.max_norm:
        nn.utils.clip_grads_with_norm_(weights, model.max_norm, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    learner.steps += 1
    told = {"gradient_norm": norm, "learning_rate": torch.tensor(rate, device=norm.device)}
    return {name: loss.detach() for name, loss in (losses | told).items()}


def let_learn(model: Embedder, player: str) -> None:
    """Freeze the other players."""
    for other in set(model.optimizer_groups) - {player}:
        model.get_submodule(other).requires_grad_(False)
    model.get_submodule(player).requires_grad_(True)


@torch.no_grad()
def validate(learner: Learner, batches: Iterable[Batch]) -> Metrics:
    """The losses on windows that the model does not learn from, as `validation_…`; means over all workers."""
    totals = Totals()
    learner.model.eval()
    for batch in batches:
        losses: dict[str, torch.Tensor] = {}
        for player in dict.fromkeys(learner.model.optimizer_groups):
            with learner.autocast():
                losses = learner.model(batch, player) | losses
        totals.add(batch, losses)
    learner.model.train()
    return {f"validation_{name}": value for name, value in totals.means().items() if name != "windows"}


class Totals:
    """Sums over windows, from which the means over all workers come; on the device, so that none waits."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}  # (2,): of a value, and of the windows that it is from

    def add(self, batch: Batch, losses: dict[str, torch.Tensor]) -> None:
        values = dict(losses)
        if "squared_error" in losses:
            values |= {"input": batch.windows.mean(), "input_squared": batch.windows.square().mean()}
        for name, value in values.items():
            one = torch.ones((), dtype=torch.float64, device=batch.windows.device)
            sums = torch.stack([value.detach().double(), one]) * len(batch.windows)
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def here(self, name: str) -> float:
        """The mean over this worker's windows so far."""
        total, windows = self.sums[name].tolist()
        return float(total / windows)

    def means(self) -> Metrics:
        """Means a window; where the model gives its squared error, also that as a share of the
        variance of the input (`unexplained`): models on different scales compare by it."""
        sums = dict(zip(self.sums, summed(list(self.sums.values())), strict=True))
        means = {name: total / windows for name, (total, windows) in sums.items()}
        if "squared_error" in means:
            variance = means.pop("input_squared") - means.pop("input") ** 2
            means["unexplained"] = means.pop("squared_error") / max(variance, 1e-12)
        return means | {"windows": sums["loss"][1]}


def summed(sums: list[torch.Tensor]) -> list[list[float]]:
    """The sums over all workers."""
    together = torch.stack(sums)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(together)
    numbers: list[list[float]] = together.tolist()
    return numbers


def worst(seconds: float, loss: float, device: torch.device) -> tuple[float, bool]:
    """The most seconds that a worker has spent, and whether the loss of any is no number: so all agree."""
    seen = torch.tensor([seconds, float(not math.isfinite(loss))], dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
    return seen[0].item(), seen[1].item() > 0


def is_first() -> bool:
    """Whether this is the worker that speaks for all."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def save_state(folder: Path, learner: Learner, curve: Curve) -> None:
    """Weights, the optimizers' moments and the curve, in formats that hold no code."""
    model = {name: tensor.contiguous() for name, tensor in learner.model.state_dict().items()}
    moments = {
        f"{player}/{number}/{name}": tensor.contiguous()
        for player, optimizer in learner.optimizers.items()
        for number, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    safetensors.torch.save_file(model, folder / WEIGHTS)
    safetensors.torch.save_file(moments, folder / MOMENTS)
    (folder / CURVE).write_text(json.dumps(curve))


def resume(learner: Learner, folder: Path) -> Curve:
    """Put a learner where it was when the state was saved; the curve so far."""
    learner.model.load_state_dict(load_weights(folder))
    moments = safetensors.torch.load_file(folder / MOMENTS)
    for player, optimizer in learner.optimizers.items():
        state: dict[int, Weights] = {}
        for key, tensor in moments.items():
            owner, number, name = key.split("/")
            if owner == player:
                state.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    curve = load_curve(folder)
    learner.steps = int(curve[-1]["steps"])
    return curve


def load_weights(folder: Path) -> Weights:
    weights: Weights = safetensors.torch.load_file(folder / WEIGHTS)
    return weights


def load_curve(folder: Path) -> Curve:
    curve: Curve = json.loads((folder / CURVE).read_text())
    return curve
