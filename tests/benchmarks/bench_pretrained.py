"""Models that need no training, on real music: how good their neighbours are, and how fast they are.

The music is a folder with a manifest.csv (file, recording, artist, package), SONGRAY_BENCH_MUSIC, by default
shared/music beside the repository: 30-second clips of music from free games. A package, which is one game,
takes the place of an album. Of each clip all others are ranked by cosine, leaving out clips of the same
recording. R-precision by artist: of the first r, where r others are by its artist, the share that is; p@5 by
package: of the first five, the share from the same package. Clips without an artist are ranked, and are no
queries. In brackets the interval that contains 95 % of the means over 1,000 resamples of the artists.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tabulate import tabulate
from torch.nn import functional

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import SPECS, Spectrogram, compute, quantise
from songray.learning.encoder import fit_encoder
from songray.learning.loop import build_model
from songray.learning.models import MODELS
from songray.learning.models.base import Embedder
from songray.learning.models.musicnn import network
from songray.learning.windows import embed_clips, jackknife_clips, tile, to_float

MUSIC = Path(os.environ.get("SONGRAY_BENCH_MUSIC", ROOT.parent / "shared" / "music"))
NAMES = ("musicnn-msd", "musicnn-mtt", "mfcc", "random")
SPEC_NAMES = ("mel128", "mel96-16k")
RESAMPLES = 1000
ROUNDS = 5

Labels = list[str]


def spectrograms_of(path: str) -> dict[str, Spectrogram]:
    recording = decode(path, Excerpt())
    planes = {name: compute(recording.resampled(SPECS[name].rate), [name])[name] for name in SPEC_NAMES}
    return {name: quantise(plane, SPECS[name]) for name, plane in planes.items()}


@cache
def manifest() -> list[dict[str, str]]:
    if not MUSIC.is_dir():
        pytest.skip(f"no music at {MUSIC}")
    with (MUSIC / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def music() -> list[dict[str, Spectrogram]]:
    torch.set_num_threads(1)
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(spectrograms_of, [str(MUSIC / row["file"]) for row in manifest()], chunksize=8))


def precisions(ranked: np.ndarray, labels: Labels, k: int | None) -> np.ndarray:
    """For each clip the share of its first k neighbours with its label, or of as many as there are with it;
    NaN where there is none, or no label."""
    values = np.full(len(labels), np.nan)
    recordings = [row["recording"] for row in manifest()]
    for query, label in enumerate(labels):
        others = [n for n in ranked[query] if recordings[n] != recordings[query]]
        sharing = sum(labels[n] == label for n in others)
        if label and sharing:
            values[query] = np.mean([labels[n] == label for n in others[: k or sharing]])
    return values


def resampled(groups: list[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
    """The finite values of groups, and the bounds of 95 % of their means over resamples of the groups."""
    groups = [kept for group in groups if len(kept := group[np.isfinite(group)])]
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(groups), len(groups)) for _ in range(RESAMPLES)]
    means = [np.concatenate([groups[n] for n in draw]).mean() for draw in draws]
    low, high = np.percentile(means, [2.5, 97.5])
    return groups, low, high


def interval(values: np.ndarray, artists: Labels) -> str:
    """The mean, and the interval of 95 % of the means over resamples of the artists."""
    groups = [values[[a == artist for a in artists]] for artist in sorted({*artists} - {""})]
    groups, low, high = resampled(groups)
    return f"{np.concatenate(groups).mean():.3f} ({low:.2f}…{high:.2f})"


def test_neighbours(music: list[dict[str, Spectrogram]]) -> None:
    rows = []
    artists, packages = ([row[column] for row in manifest()] for column in ("artist", "package"))
    for name in NAMES:
        model = build_model(MODELS[name](), 0).eval()
        clips = jackknife_clips(model, [spectrograms[model.spec] for spectrograms in music])
        declared, pooled = model.scale, np.stack([vectors[0] for vectors in clips])
        for scale in dict.fromkeys(("centre", "whiten", declared)):
            model.scale = scale
            vectors = fit_encoder(model, clips).normalise(pooled)
            ranked = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")
            found = [precisions(ranked, artists, None), precisions(ranked, packages, 5)]
            used = " *" if scale == declared else ""
            rows.append([name, scale + used, vectors.shape[1], *(interval(v, artists) for v in found)])
    counts = f"{len(music)} clips, {len({*artists} - {''})} artists, {len({*packages})} packages"
    print(f"\n{counts}; * the scale of the model\n")
    heads = ["model", "scale", "numbers", "artist, R-precision", "package, p@5"]
    print(tabulate(rows, heads, tablefmt="github"))


def direct_timbral(spectrograms: torch.Tensor, kernel: torch.Tensor, padding: float) -> torch.Tensor:
    padded = functional.pad(spectrograms, (0, 0, kernel.shape[1] // 2, kernel.shape[1] // 2), value=padding)
    return functional.conv2d(padded[:, None], kernel[:, None]).amax(3).transpose(1, 2)


def direct_temporal(spectrograms: torch.Tensor, kernel: torch.Tensor, padding: float) -> torch.Tensor:
    taps = kernel.shape[1]
    padded = functional.pad(spectrograms, (0, 0, (taps - 1) // 2, taps // 2), value=padding)
    return functional.conv2d(padded[:, None], kernel[:, None, :, None]).amax(3).transpose(1, 2)


def fastest(function: Callable[[], object]) -> float:
    """Seconds of processor time of the fastest of ROUNDS calls, on which other programs have least effect."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)


@torch.inference_mode()
def forward(model: Embedder, windows: torch.Tensor) -> list[torch.Tensor]:
    return [model.embed(batch) for batch in windows.split(model.batch_windows)]


def test_speed(music: list[dict[str, Spectrogram]], monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip at a time, as an upload, with one thread."""
    rows = []
    for name in NAMES:
        model = build_model(MODELS[name](), 0).eval()
        clip = music[0][model.spec]
        windows = to_float(torch.tensor(tile(clip, model.frames, model.hop, model.padding)))
        ours, bare = fastest(partial(embed_clips, model, [clip])), fastest(partial(forward, model, windows))
        direct = products = np.nan
        if isinstance(model, network.Musicnn):
            with monkeypatch.context() as patched:
                patched.setattr(network, "bfloat16_products", lambda are_exact: nullcontext())
                products = fastest(partial(forward, model, windows))
                patched.setattr(network, "timbral", direct_timbral)
                patched.setattr(network, "temporal", direct_temporal)
                direct = fastest(partial(forward, model, windows))
        rows.append([name, len(windows), 1 / ours, 1 / bare, bare / ours, 1 / products, 1 / direct])
    print("\nclips of 30 s a second of one processor, from stored spectrograms\n")
    heads = ["model", "windows", "embed_clips", "forward pass", "share", "float32", "torch's convolutions"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".2f"))
