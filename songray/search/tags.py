"""Tags of the sound in an index: how their probabilities are stored, when a track has a tag, and how well
tracks fit a description by tags.

The networks that give the probabilities are not calibrated: those of rare tags are low everywhere. So the
logit of a probability is compared with its mean and deviation over a sample of the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors

LARGEST_LOGIT = 8.0  # levels 1…255 are logits from −8 to 8; level 0: unknown
LEAST_DEVIATION = 0.25  # of logits: where all tracks agree on a tag, small differences mean nothing
LARGEST_SCORE = 3.0  # of one tag, in deviations: a single tag does not decide alone
STANDS_OUT, LIKELY, POSSIBLE = 1.0, 0.5, 0.05  # see `Tags.has`
SHOWN_TAGS = 5  # of a track, at most

Levels = NDArray[np.uint8]  # (tracks, labels)


@dataclass(frozen=True)
class Tags:
    """The labels of an index, and the mean and the deviation of the logits of each over a sample of it."""

    statistics: Mapping[str, Sequence[float]] = field(default_factory=dict)  # label: mean, deviation

    @property
    def labels(self) -> list[str]:
        return list(self.statistics)

    def columns(self, labels: Sequence[str]) -> list[int]:
        """The columns of some labels in levels."""
        column = {label: number for number, label in enumerate(self.statistics)}
        return [column[label] for label in labels]

    def standardise(self, levels: Levels, labels: Sequence[str]) -> Vectors:
        """The logits of some labels in deviations from their mean, (tracks, labels), NaN where unknown."""
        means, deviations = np.array([self.statistics[label] for label in labels], np.float32).T
        standardised: Vectors = (logits(levels[:, self.columns(labels)]) - means) / deviations
        return standardised

    def has(self, levels: Levels, labels: Sequence[str]) -> NDArray[np.bool_]:
        """Whether tracks have each of some tags, (tracks, labels): it is likely (0.5), or it stands out by
        one deviation and is possible (0.05)."""
        standardised = self.standardise(levels, labels)
        probability = probabilities(levels[:, self.columns(labels)])
        with np.errstate(invalid="ignore"):  # comparisons with NaN are false
            has: NDArray[np.bool_] = (probability >= LIKELY) | (
                (standardised >= STANDS_OUT) & (probability >= POSSIBLE)
            )
        return has

    def score(self, levels: Levels, weights: Mapping[str, float]) -> Vectors:
        """How well tracks fit a description by tags, (tracks,), −1…1, NaN where their tags are unknown:
        tanh(s / 2), where s is the mean of the standardised logits by the weights, a negative weight counting
        their absence. So (score + 1) / 2, the similarity of a result, is the logistic function of s."""
        standardised = np.clip(self.standardise(levels, list(weights)), -LARGEST_SCORE, LARGEST_SCORE)
        values = np.array(list(weights.values()), np.float32)
        scores: Vectors = np.tanh(standardised @ values / np.abs(values).sum() / 2)
        return scores

    def shown(self, levels: Levels) -> list[list[dict[str, str | float]]]:
        """The tags that tracks have, those that stand out most first."""
        if not self.statistics:
            return [[] for _ in levels]
        standardised = self.standardise(levels, self.labels)
        has = self.has(levels, self.labels)
        order = np.argsort(np.where(has, -standardised, np.inf), axis=1)[:, :SHOWN_TAGS]
        likely = probabilities(levels)
        return [
            [
                {"tag": self.labels[n], "probability": round(float(likely[row, n]), 3)}
                for n in order[row]
                if has[row, n]
            ]
            for row in range(len(levels))
        ]


def to_levels(probability: Vectors) -> Levels:
    """Probabilities, NaN where they are unknown, as stored levels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logit = np.clip(np.log(probability / (1 - probability)), -LARGEST_LOGIT, LARGEST_LOGIT)
        levels = np.rint(1 + (logit + LARGEST_LOGIT) / (2 * LARGEST_LOGIT) * 254)
    return np.where(np.isnan(probability), 0, levels).astype(np.uint8)


def logits(levels: Levels) -> Vectors:
    values = (levels.astype(np.float32) - 1) / 254 * (2 * LARGEST_LOGIT) - LARGEST_LOGIT
    return np.where(levels == 0, np.float32(np.nan), values)


def probabilities(levels: Levels) -> Vectors:
    values: Vectors = (1 / (1 + np.exp(-logits(levels)))).astype(np.float32)
    return values


def statistics(labels: Sequence[str], levels: Levels) -> dict[str, list[float]]:
    """The mean and the deviation of the logits of each label over tracks; none where no track has tags."""
    known = logits(levels[levels.all(axis=1)])
    if not known.size:
        return {}
    deviations = np.maximum(known.std(axis=0), LEAST_DEVIATION)
    pairs = np.stack([known.mean(axis=0), deviations], axis=1).round(4).tolist()
    return dict(zip(labels, pairs, strict=True))
