"""Figures as SVG: lines and text take the colors of the page around them, points lie in them as images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from songray.evaluation.clusters import Counts
from songray.evaluation.intervals import Estimate
from songray.search.maps import Positions

# matplotlib is imported in functions: it loads in a second, and --help imports this module.

INK = "#010203"  # replaced by the color of the page's text
COLORS = ("#3b7dd8", "#e07b28", "#2f9e62", "#c9453f", "#8b68c9", "#a0714f", "#d667a8", "#7d8794", "#a9a42a",
          "#21a9b8", "#5c6bc0", "#f2a93b", "#66bb6a", "#ef7f7a", "#b39ddb", "#8d6e63", "#f48fb1", "#90a4ae",
          "#d4d04a", "#4dd0e1")  # fmt: skip
UNKNOWN = "#8a8f98"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "songray",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
MAP_INCHES = 3.3
POINTS_SHOWN = 5000


class Drawing:
    """A figure; `svg` has its text once the context has ended."""

    svg = ""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes = figure, axes


@contextmanager
def drawing(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[Drawing]:
    """A figure of so many inches, with axes in rows and columns."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        made = Drawing(figure, figure.subplots(rows, columns, **options))
        yield made
        with io.StringIO() as buffer:
            figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
            text = buffer.getvalue()
    made.svg = text[text.index("<svg") :].replace(INK, "currentColor")


def intervals(estimates: Mapping[str, Estimate], label: str, chance: float | None) -> str:
    """A row for each run, sorted by its mean, with its interval and the value of chance."""
    names = sorted(estimates, key=lambda name: estimates[name].mean)
    with drawing(5.0, 0.7 + 0.24 * len(names)) as made:
        for row, name in enumerate(names):
            value = estimates[name]
            if value.low is not None and value.high is not None:
                made.axes.plot([value.low, value.high], [row, row], color=COLORS[0], alpha=0.55, linewidth=3)
            made.axes.plot(value.mean, row, "o", color=COLORS[0], markersize=5)
        if chance is not None:
            made.axes.axvline(chance, color=COLORS[3], linestyle="--", linewidth=1)
        made.axes.set_yticks(range(len(names)), names)
        made.axes.set_xlabel(label)
        made.axes.locator_params(axis="x", nbins=5)
        made.axes.grid(axis="x", alpha=0.2)
    return made.svg


def scatter(
    positions: Positions,
    colors: NDArray[np.int64] | None = None,
    marks: Mapping[str, NDArray[np.int64]] | None = None,
    size: float = MAP_INCHES,
) -> str:
    """Points in the colors of their numbers, −1 in grey; `marks` are points with a text, larger."""
    with drawing(size, size) as made:
        shown = slice(POINTS_SHOWN)
        codes = np.full(len(positions), -1) if colors is None else colors
        order = np.argsort(codes[shown] >= 0, kind="stable")  # unknown ones below
        points = positions[shown][order]
        alpha = 0.3 if marks and colors is None else 0.85
        inks = [color(code) for code in codes[shown][order]]
        made.axes.scatter(*points.T, s=9, c=inks, alpha=alpha, linewidths=0, rasterized=True)
        for number, (text, members) in enumerate((marks or {}).items()):
            own = positions[members]
            made.axes.plot(*own.T, "o", color=COLORS[number % len(COLORS)], markersize=6)
            place = {"xytext": (5, 4), "textcoords": "offset points"}
            made.axes.annotate(text, own.mean(axis=0), fontsize=8, fontweight="bold", **place)
        _without_ticks(made.axes)
    return made.svg


def numbers(positions: Positions, values: NDArray[np.float64], label: str) -> str:
    """Points in the color of a number."""
    with drawing(MAP_INCHES + 0.7, MAP_INCHES) as made:
        points = made.axes.scatter(*positions.T, s=22, c=values, cmap="viridis", linewidths=0)
        made.figure.colorbar(points, label=label, format="%d")
        _without_ticks(made.axes)
    return made.svg


def color(code: int) -> str:
    return UNKNOWN if code < 0 else COLORS[code % len(COLORS)]


def curves(values: Mapping[str, Sequence[float]], label: str) -> str:
    """A line for each name, by epoch, on a logarithmic scale where all values are above 0."""
    return lines(values, "epoch", label, first=1, log=True)


def lines(values: Mapping[str, Sequence[float]], x: str, y: str, first: int = 0, log: bool = False) -> str:
    """A line for each name, by position from `first` on."""
    with drawing(5.0, 3.0) as made:
        for number, (name, each) in enumerate(values.items()):
            places = range(first, first + len(each))
            made.axes.plot(places, each, ".-", label=name, color=color(number), markersize=4)
        made.axes.set_xlabel(x)
        made.axes.set_ylabel(y)
        made.axes.xaxis.get_major_locator().set_params(integer=True)
        if log and all(value > 0 for each in values.values() for value in each):
            made.axes.set_yscale("log")
        made.axes.grid(alpha=0.2)
        made.figure.legend(loc="outside lower center", fontsize=7, ncols=2)
    return made.svg


def cluster_counts(counts: Counts) -> str:
    """The silhouette and the inertia by k, with the k that each chooses."""
    with drawing(5.0, 2.3, 1, 2) as made:
        panels = (("mean silhouette", counts.silhouette, counts.by_silhouette),
                  ("sum of squared distances", counts.inertia, counts.by_elbow))  # fmt: skip
        for axes, (label, values, best) in zip(made.axes, panels, strict=True):
            axes.plot(counts.k, values, color=COLORS[0], marker=".", markersize=4)
            axes.axvline(best, color=COLORS[3], linestyle="--", linewidth=1)
            axes.set_xlabel(f"k (chosen: {best})")
            axes.set_title(label, fontsize=9)
    return made.svg


def spectrograms(planes: Mapping[str, NDArray[Any]]) -> str:
    """Spectrograms, (frames, bins) each, one above the other."""
    with drawing(5.0, 1.45 * len(planes), len(planes), 1, squeeze=False) as made:
        for axes, (title, plane) in zip(made.axes[:, 0], planes.items(), strict=True):
            axes.imshow(plane.T, origin="lower", aspect="auto", cmap="magma", interpolation="nearest")
            axes.set_title(title, fontsize=9, loc="left")
            _without_ticks(axes)
    return made.svg


def waveforms(samples: NDArray[np.float32], rate: int, seconds: Sequence[float]) -> str:
    """The first seconds of a recording, at some lengths."""
    with drawing(5.0, 1.1 * len(seconds), len(seconds), 1, squeeze=False) as made:
        for axes, length in zip(made.axes[:, 0], seconds, strict=True):
            middle = len(samples) // 2
            part = samples[middle : middle + int(length * rate)]
            step = max(1, len(part) // 4000)
            x = np.arange(0, len(part), step) / rate
            axes.plot(1000 * x if length < 1 else x, part[::step], color=COLORS[0], linewidth=0.6)
            axes.set_xlabel("ms" if length < 1 else "s", fontsize=8)
            axes.set_yticks([])
    return made.svg


def heatmap(counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], x: str, y: str) -> str:
    """A table of counts as colors and numbers."""
    with drawing(1.6 + 0.42 * len(columns), 1.1 + 0.28 * len(rows)) as made:
        made.axes.imshow(counts, cmap="Blues", aspect="auto", vmax=max(1, counts.max()) * 1.4)
        for (row, column), count in np.ndenumerate(counts):
            made.axes.text(column, row, count, ha="center", va="center", fontsize=7, color="black")
        made.axes.set_xticks(range(len(columns)), columns, fontsize=8)
        made.axes.set_yticks(range(len(rows)), rows, fontsize=8)
        made.axes.set_xlabel(x)
        made.axes.set_ylabel(y)
    return made.svg


def boxes(values: Mapping[str, NDArray[Any]], label: str) -> str:
    """A box plot for each name, sorted by its median."""
    names = sorted(values, key=lambda name: float(np.median(values[name])))
    with drawing(5.0, 0.7 + 0.26 * len(names)) as made:
        made.axes.boxplot(
            [values[name] for name in names], orientation="horizontal", tick_labels=names, widths=0.6,
            **{name: {"color": INK} for name in ("boxprops", "whiskerprops", "capprops")},
            medianprops={"color": COLORS[1]}, flierprops={"markersize": 2, "markeredgecolor": UNKNOWN},
        )  # fmt: skip
        made.axes.set_xlabel(label)
    return made.svg


def _without_ticks(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_alpha(0.25)
