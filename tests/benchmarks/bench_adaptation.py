"""Adaptation of the default fusion to artists: does it help for artists that it was not fitted on?

The music and the scores are those of bench_fusion. A projection is fitted on the clips of one half of the
artists, and scored on those of the other among themselves, 20 times: the difference from the vectors before,
with intervals of 95 % over resamples of the artists. `adapt` uses the classes and the power of the row that
is marked.
"""

from __future__ import annotations

import numpy as np
from bench_fusion import HEADS, Music, cosines, joined, members, music  # noqa: F401  # fixtures
from tabulate import tabulate

from songray.learning.fusion import principal_directions
from songray.learning.scale import CLASS_POWER, unit, within_class_projection
from songray.library import Vectors
from songray.pipeline import MEMBERS

POWERS, DIMENSION = (0.25, 0.5, 1.0), 96


def test_projections(members: dict[str, Vectors]) -> None:  # noqa: F811
    labels = Music()
    whole = joined(members, dict(MEMBERS))
    vectors = unit(whole @ principal_directions(whole, DIMENSION))
    rows = []
    for name in ("recording", "artist", "package"):
        classes = getattr(labels, name)
        for power in POWERS:
            mark = " (adapt)" if (name, power) == ("artist", CLASS_POWER) else ""
            rows.append([f"{name}, power {power:g}{mark}", *differences(vectors, classes, power, labels)])
    print("\n" + tabulate(rows, ["classes", *HEADS], tablefmt="github"))


def differences(vectors: Vectors, classes: np.ndarray, power: float, labels: Music) -> list[str]:
    changes = [np.zeros((0, len(vectors))) for _ in HEADS]
    for half, other in labels.halves():
        known = half[classes[half] != ""]
        adapted = unit(vectors @ within_class_projection(vectors[known], classes[known], power))
        before, after = (labels.score(cosines(scored), other) for scored in (vectors, adapted))
        for column, (first, second) in enumerate(zip(before, after, strict=True)):
            row = np.full(len(vectors), np.nan)
            row[other] = second - first
            changes[column] = np.vstack([changes[column], row])
    with np.errstate(invalid="ignore"):
        return [labels.interval(np.nanmean(change, axis=0), "+") for change in changes]
