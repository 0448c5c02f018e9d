"""Points of the map as binary columns, coloured by an attribute of the tracks."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from songray.search.candidates import Points

STEPS = 65535  # of a coordinate between the least and the largest one
COLOURS = 20  # categories with a colour of their own; all others share one
FORMAT = (
    "A little-endian uint32, the length of a JSON text; this text, padded with spaces to a multiple of 4; "
    "and the columns that it names, in their order: shard and label (int32), which name a track to "
    "/v1/points/{shard}/{label}, its color (float32, NaN where it is unknown, or uint16, an index in "
    "color.values), x and y (uint16, 0…65535 between the bounds of `extent`: left, bottom, right, top)."
)


def encode(points: Points, colour: NDArray[Any], header: dict[str, Any]) -> bytes:
    """Points and their colours, (points,), texts or numbers; the header is extended by what they need."""
    extent = _extent(points)
    is_category = colour.dtype == object
    described: dict[str, Any] = {"kind": "category" if is_category else "number"}
    if is_category:
        codes, described["values"], described["counts"] = codes_of(colour)
    else:
        codes = np.asarray(colour, np.float32)
        known = codes[~np.isnan(codes)]
        described |= {"least": float(known.min()), "largest": float(known.max())} if known.size else {}
    columns: dict[str, NDArray[Any]] = {
        "shard": points["shard"].astype(np.int32),
        "label": points["label"].astype(np.int32),
        "color": codes,
        "x": _scaled(points["x"], extent[0], extent[2]),
        "y": _scaled(points["y"], extent[1], extent[3]),
    }
    head = header | {
        "count": len(points),
        "extent": extent,
        "color": described,
        "columns": [{"name": name, "type": column.dtype.name} for name, column in columns.items()],
    }
    text = orjson.dumps(head)
    text += b" " * (-len(text) % 4)
    # Columns of 4 bytes come first, so that each is aligned: uint16 codes follow those of 4 bytes.
    return struct.pack("<I", len(text)) + text + b"".join(column.tobytes() for column in columns.values())


def codes_of(names: NDArray[np.object_]) -> tuple[NDArray[np.uint16], list[str], list[int]]:
    """A code for each name, the names of the codes, most frequent first, and how many tracks have each. The
    rarest share the name "…", tracks without a name have ""."""
    distinct, inverse, counts = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    order = np.lexsort((distinct, -counts, distinct == ""))  # tracks without a name at the end
    kept = order[:COLOURS] if len(order) > COLOURS + 1 else order
    code = np.full(len(distinct), len(kept), np.uint16)
    code[kept] = np.arange(len(kept))
    values, numbers = distinct[kept].tolist(), counts[kept].tolist()
    if len(kept) < len(distinct):
        values, numbers = [*values, "…"], [*numbers, int(counts.sum() - sum(numbers))]
    return code[inverse], values, numbers


def describe_clusters(clusters: NDArray[np.object_], values: NDArray[np.object_]) -> NDArray[np.object_]:
    """The clusters, (tracks,), each with the value that is most its own, such as "2: jazz": a value's share
    of the cluster times the cluster's share of the value is the largest."""
    names = {"": ""}
    for cluster in set(clusters.tolist()) - {""}:
        own, counts = np.unique(values[clusters == cluster].astype(str), return_counts=True)
        share = counts**2 / np.array([(values == value).sum() for value in own])
        share[own == ""] = 0.0
        best = str(own[share.argmax()])
        names[cluster] = f"{cluster}: {best}" if best else cluster
    return np.array([names[cluster] for cluster in clusters.tolist()], object)


def _extent(points: Points) -> list[float]:
    if not len(points):
        return [0.0, 0.0, 1.0, 1.0]
    x, y = points["x"], points["y"]
    return [float(value) for value in (x.min(), y.min(), x.max(), y.max())]


def _scaled(values: NDArray[np.float32], least: float, largest: float) -> NDArray[np.uint16]:
    span = max(largest - least, 1e-12)
    scaled: NDArray[np.uint16] = np.round((values - least) / span * STEPS).astype(np.uint16)
    return scaled
