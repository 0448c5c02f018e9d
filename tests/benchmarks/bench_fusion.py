"""Several models together: which, with which weights, in how many numbers, and whether hubness helps them.

The music and the scores are those of bench_pretrained: of each clip all others are ranked by cosine, leaving
out clips of the same recording; R-precision by artist, and the share of the first five from the same package.
In brackets are intervals that contain 95 % of the means over resamples of the artists whose clips are the
queries; clips without an artist count as those of an artist of their package.

SONGRAY_BENCH_SEEDS, 3, is the number of untrained encoders that `random` is measured with.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import pytest
import torch
from bench_pretrained import manifest, music, resampled  # noqa: F401  # a fixture
from tabulate import tabulate

from songray.audio.spectrograms import Spectrogram
from songray.learning.encoder import fit_encoder
from songray.learning.fusion import Fusion, principal_directions
from songray.learning.loop import build_model
from songray.learning.models import MODELS
from songray.learning.scale import unit
from songray.learning.windows import jackknife_clips
from songray.library import Vectors
from songray.pipeline import MEMBERS

SEEDS = int(os.environ.get("SONGRAY_BENCH_SEEDS", "3"))
NAMES = ("musicnn-msd", "musicnn-mtt", "mfcc", "random")
WEIGHTS = (0, 0.125, 0.25, 0.5, 1)  # that are tried for each member but the first, whose weight is 1
HALVES = 10
DIMENSIONS = (96, 64, 32)
HUBNESS = (0.25, 0.5, 1)  # factors of the hubness that are subtracted from a cosine
NEIGHBOURS = 10  # of a track, whose mean cosine is its hubness
HEADS = ["artist, R-precision", "package, p@5"]

Scores = tuple[np.ndarray, np.ndarray]  # of each query, (queries,), NaN where it has no label


class Music:
    """The labels of the clips."""

    def __init__(self) -> None:
        columns = ("artist", "package", "recording")
        self.artist, self.package, self.recording = (
            np.array([row[column] for row in manifest()]) for column in columns
        )
        self.group = np.where(self.artist == "", self.package, self.artist)

    @cached_property
    def everything(self) -> np.ndarray:
        return np.arange(len(self.artist))

    def score(self, similarity: np.ndarray, clips: np.ndarray | None = None) -> Scores:
        """Each of the clips is a query, and ranks the others of them."""
        clips = self.everything if clips is None else clips
        artist, package, recording = (labels[clips] for labels in (self.artist, self.package, self.recording))
        same = recording[:, None] == recording
        order = np.argsort(np.where(same, np.inf, -similarity[np.ix_(clips, clips)]), axis=1, kind="stable")
        is_other = np.arange(len(clips)) < (~same).sum(axis=1)[:, None]
        by_artist = (artist[order] == artist[:, None]) & is_other & (artist != "")[:, None]
        by_package = (package[order] == package[:, None]) & is_other
        count = by_artist.sum(axis=1)
        within = np.take_along_axis(by_artist.cumsum(axis=1), np.maximum(count, 1)[:, None] - 1, axis=1)[:, 0]
        first = np.where(count > 0, within / np.maximum(count, 1), np.nan)
        return first, np.where(by_package.any(axis=1), by_package[:, :5].mean(axis=1), np.nan)

    def interval(self, values: np.ndarray, sign: str = "") -> str:
        _, low, high = resampled([values[self.group == group] for group in np.unique(self.group)])
        return f"{np.nanmean(values):{sign}.3f} ({low:{sign}.3f}…{high:{sign}.3f})"

    def halves(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """The clips of a half of the artists and those of the other, and the other way round."""
        random = np.random.default_rng(0)
        for _ in range(HALVES):
            groups = random.permutation(np.unique(self.group))
            is_first = np.isin(self.group, groups[: len(groups) // 2])
            halves = np.flatnonzero(is_first), np.flatnonzero(~is_first)
            yield from (halves, halves[::-1])


def means(scores: Scores) -> np.ndarray:
    return np.array([np.nanmean(values) for values in scores])


def member(name: str, seed: int, music: list[dict[str, Spectrogram]]) -> Vectors:  # noqa: F811
    model = build_model(MODELS[name](), seed).eval()
    clips = jackknife_clips(model, [spectrograms[model.spec] for spectrograms in music])
    return fit_encoder(model, clips).normalise(np.stack([vectors[0] for vectors in clips]))


@pytest.fixture(scope="module")
def members(music: list[dict[str, Spectrogram]]) -> dict[str, Vectors]:  # noqa: F811
    torch.set_num_threads(1)
    seeds = [(name, seed) for name in NAMES for seed in range(SEEDS if name == "random" else 1)]
    return {f"{name} {seed}" if seed else name: member(name, seed, music) for name, seed in seeds}


def joined(members: dict[str, Vectors], weights: dict[str, float]) -> Vectors:
    return Fusion(np.array(list(weights.values()), np.float32)).join([members[name] for name in weights])


def cosines(vectors: Vectors) -> np.ndarray:
    return vectors @ vectors.T


def row(name: str, scores: Scores, reference: Scores, labels: Music) -> list[str]:
    """A row of a table: the scores, and the differences of paired queries from the reference's."""
    differences = [after - before for after, before in zip(scores, reference, strict=True)]
    return [name, *map(labels.interval, scores), *(labels.interval(values, "+") for values in differences)]


def compared(title: str, reference: str) -> None:
    print(f"\n{title}; difference: of the same queries, from {reference}\n")


def test_members_and_fusions(members: dict[str, Vectors]) -> None:
    labels = Music()
    first = labels.score(cosines(members[NAMES[0]]))
    fusions = {name: {name: 1.0} for name in members}
    for pair in itertools.combinations(NAMES, 2):
        fusions[" + ".join(pair)] = dict.fromkeys(pair, 1.0)
    for left_out in MEMBERS:
        fusions[f"default without {left_out}"] = {n: w for n, w in MEMBERS.items() if n != left_out}
    for seed in range(1, SEEDS):
        renamed = {f"random {seed}" if n == "random" else n: w for n, w in MEMBERS.items()}
        fusions[f"default, random {seed}"] = renamed
    fusions["default"] = dict(MEMBERS)
    rows = [
        row(name, labels.score(cosines(joined(members, weights))), first, labels)
        for name, weights in fusions.items()
    ]
    compared(f"default: {MEMBERS}", NAMES[0])
    print(tabulate(rows, ["vectors", *HEADS, "difference", "difference"], tablefmt="github"))


def test_weights(members: dict[str, Vectors]) -> None:
    """Weights are chosen on one half of the artists by the mean of both scores, and reported on the other."""
    labels = Music()
    single = np.stack([cosines(members[name]) for name in NAMES])
    grid = [np.array([1, *rest]) for rest in itertools.product(WEIGHTS, repeat=len(NAMES) - 1)]
    default = np.array([MEMBERS.get(name, 0) for name in NAMES])
    fixed = {"default": default, NAMES[0]: grid[0]}
    held_out: dict[str, list[np.ndarray]] = {name: [] for name in ("chosen", *fixed)}
    chosen = []
    for half, other in labels.halves():
        best = max(grid, key=lambda w: means(labels.score(np.tensordot(w, single, 1), half)).mean())
        chosen.append(best)
        for name, weights in (fixed | {"chosen": best}).items():
            held_out[name].append(means(labels.score(np.tensordot(weights, single, 1), other)))
    print(f"\non the other half, means over {len(chosen)} halves of the artists\n")
    rows = [[name, *np.mean(scores, axis=0)] for name, scores in held_out.items()]
    print(tabulate(rows, ["weights", *HEADS], tablefmt="github", floatfmt=".3f"))
    better = np.array(held_out["default"]) > np.array(held_out[NAMES[0]])
    print(f"\nhalves on which the default is better than {NAMES[0]}: {better.sum(axis=0).tolist()}")
    print(tabulate([np.mean(chosen, axis=0)], NAMES, tablefmt="github", floatfmt=".2f"))


def test_dimensions(members: dict[str, Vectors]) -> None:
    """Directions that are fitted on all clips, and those that are fitted on the other half of the artists."""
    labels = Music()
    whole = joined(members, dict(MEMBERS))
    first = labels.score(cosines(whole))
    rows = [[f"{whole.shape[1]} (all)", *map(labels.interval, first)]]
    for dimension in DIMENSIONS:
        reduced = unit(whole @ principal_directions(whole, dimension))
        rows.append(row(str(dimension), labels.score(cosines(reduced)), first, labels))
        levels = unit(np.rint(reduced / np.abs(reduced).max() * 127))
        rows.append(row(f"{dimension}, 8 bits", labels.score(cosines(levels)), first, labels))
    compared("numbers", "all numbers")
    print(tabulate(rows, ["numbers", *HEADS, "difference", "difference"], tablefmt="github"))
    changes: dict[int, list[np.ndarray]] = {dimension: [] for dimension in DIMENSIONS}
    for half, other in labels.halves():
        before = means(labels.score(cosines(whole), other))
        for dimension in DIMENSIONS:
            reduced = unit(whole @ principal_directions(whole[half], dimension))
            changes[dimension].append(means(labels.score(cosines(reduced), other)) - before)
    print("\nfitted on the other half of the artists, difference from all numbers\n")
    rows = [[dimension, *np.mean(values, axis=0)] for dimension, values in changes.items()]
    print(tabulate(rows, ["numbers", *HEADS], tablefmt="github", floatfmt="+.3f"))


def test_hubness(members: dict[str, Vectors]) -> None:
    """Whether subtracting a share of the hubness from the cosine helps: cross-domain similarity local scaling
    (Conneau et al., 2018, Word translation without parallel data) subtracts a half."""
    labels = Music()
    rows = []
    for name in (*NAMES, "default"):
        vectors = joined(members, dict(MEMBERS)) if name == "default" else members[name]
        hubness = np.sort(cosines(vectors), axis=1)[:, -NEIGHBOURS - 1 : -1].mean(axis=1)  # not itself
        plain = labels.score(cosines(vectors))
        rows.append([f"{name}, cosine", *map(labels.interval, plain)])
        for factor in HUBNESS:
            scores = labels.score(cosines(vectors) - factor * hubness)
            rows.append(row(f"{name}, − {factor:g} × hubness", scores, plain, labels))
    compared("hubness", "plain cosine")
    print(tabulate(rows, ["ranking", *HEADS, "difference", "difference"], tablefmt="github"))
