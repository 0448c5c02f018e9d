"""Training steps and embedding on a GPU, without Ray: speed in single and in half precision and compiled, and
how near the results are to those of the CPU. Skips where there is no GPU.

    python tests/benchmarks/bench_gpu.py [SPECTROGRAMS]

runs it where neither pytest nor Ray is installed. SPECTROGRAMS is a file of numpy.savez: an array of stored
spectrograms, (clips, frames, bins), under the name of each spec; by default they are noise.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle, islice

import numpy as np
import torch

from songray.audio.spectrograms import SPECS
from songray.learning.loop import Learner, build_learner, build_model, step
from songray.learning.models import MODELS, LearningConfig
from songray.learning.windows import Clips, embed_clips, learning_batches, to_device

CLIPS, FRAMES, STEPS, ROUNDS = 64, 1292, 30, 3
COMPILED = ("contrastive", "cae", "vae")  # compiling one takes up to a minute

Spectrograms = dict[str, np.ndarray]


def noise() -> Spectrograms:
    random = np.random.default_rng(0)
    return {
        name: random.integers(0, 255, (CLIPS, FRAMES, spec.bins), np.uint8) for name, spec in SPECS.items()
    }


def repeated(path: str) -> Spectrograms:
    """Stored spectrograms, repeated until there are CLIPS."""
    return {name: np.resize(clips, (CLIPS, *clips.shape[1:])) for name, clips in np.load(path).items()}


def rate(learner: Learner, batches: list) -> float:
    """Steps a second, the median of ROUNDS, after as many steps to warm up."""
    endless, seconds = cycle(batches), []
    for _ in range(ROUNDS + 1):
        started = time.monotonic()
        for batch in islice(endless, STEPS):
            step(learner, batch)
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
    return STEPS / float(np.median(seconds[1:]))


def first_losses(name: str, batch: object, devices: tuple[str, ...]) -> list[float]:
    losses = []
    for device in devices:
        model = build_model(MODELS[name](), 0).eval().to(device)  # no dropout
        with torch.no_grad():
            losses.append(float(model(to_device(batch, torch.device(device)))["loss"]))
    return losses


def training(spectrograms: Spectrograms) -> list[list[object]]:
    rows = []
    for name, options in MODELS.items():
        config = options()
        if not isinstance(config, LearningConfig) or name == "factors":  # whose targets lie in a library
            continue
        model = build_model(config, 0)
        clips = spectrograms[model.spec]
        numbers = np.arange(len(clips))
        count = config.batch_size // model.views
        batches = list(islice(learning_batches(Clips(numbers, numbers, list(clips)), model, count, 0, 1), 2))
        on_cpu, on_gpu = first_losses(name, batches[0], ("cpu", "cuda"))
        ready = [to_device(batch, torch.device("cuda")) for batch in batches]
        rates = []
        for bf16, is_compiled in ((False, False), (True, False), (True, True)):
            if is_compiled and name not in COMPILED:
                rates.append(float("nan"))
                continue
            model = build_model(config, 0).to("cuda")
            wrapped = torch.compile(model) if is_compiled else None
            rates.append(rate(build_learner(model, config, wrapped, bf16), ready))
        rows.append(
            [name, config.batch_size, *rates, *(one * config.batch_size for one in rates), on_cpu, on_gpu]
        )
    return rows


def embedding(spectrograms: Spectrograms) -> list[list[object]]:
    rows = []
    for name, options in MODELS.items():
        if name in ("mfcc", "pca", "raw", "factors"):
            continue
        model = build_model(options(), 0).eval()
        clips = list(spectrograms[model.spec])
        expected = embed_clips(model, clips[:8], "mean")
        model = model.to("cuda")
        row: list[object] = [name]
        for half in (False, True):
            embed_clips(model, clips, "mean", half)
            started = time.monotonic()
            vectors = embed_clips(model, clips, "mean", half)
            row += [len(clips) / (time.monotonic() - started), least_cosine(expected, vectors[:8])]
        rows.append(row)
    return rows


def least_cosine(first: np.ndarray, second: np.ndarray) -> float:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / lengths).min())


def report(spectrograms: Spectrograms) -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(
        "\nmodel, batch | steps/s: float32, bf16, bf16 compiled | windows/s likewise | first loss: CPU, GPU"
    )
    for name, batch, *numbers in training(spectrograms):
        print(f"{name:<12} {batch:>4} | " + " ".join(f"{number:>10.4g}" for number in numbers), flush=True)
    print("\nmodel | clips/s, smallest cosine to the CPU's vectors: float32; half precision")
    for name, *numbers in embedding(spectrograms):
        print(f"{name:<12} | " + " ".join(f"{number:>12.7g}" for number in numbers), flush=True)


def test_gpu() -> None:
    import pytest

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    report(noise())


if __name__ == "__main__":
    report(repeated(sys.argv[1]) if len(sys.argv) > 1 else noise())
