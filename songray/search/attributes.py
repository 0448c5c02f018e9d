"""Attributes of tracks by which a map is coloured: a category, or a number."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.library import Vectors
from songray.search.clusters import UNKNOWN
from songray.search.tags import Levels, Tags, probabilities

Category = Literal["genre", "artist", "album", "source", "key", "mode", "license", "cluster", "tag"]
Number = Literal["year", "seconds", "tempo"]
CATEGORICAL: tuple[str, ...] = get_args(Category)
NUMERIC = {"year": "_year", "seconds": "_duration", "tempo": "tempo_bpm", "x": "_x", "y": "_y"}
COLUMNS = {"genre": "genres", "artist": "artist_names"}  # of the others the column has their name


def categories(tracks: pa.RecordBatch, labels: NDArray[np.int64], name: str) -> NDArray[np.object_]:
    """A category of some tracks, (labels,): the first value where there are several, "" where none."""
    if name == "cluster":
        numbers = tracks["_cluster"].to_numpy()[labels]
        return np.where(numbers == UNKNOWN, "", (numbers + 1).astype(str)).astype(object)
    column = tracks[COLUMNS.get(name, name)].take(pa.array(labels))
    if pa.types.is_list(column.type):
        column = first_values(column)
    values: NDArray[np.object_] = pa.compute.fill_null(column, "").to_numpy(zero_copy_only=False)
    return values


def numbers(tracks: pa.RecordBatch, labels: NDArray[np.int64], name: str) -> Vectors:
    """A number of some tracks, (labels,), NaN where it is unknown; x and y are those of the map."""
    taken = tracks[NUMERIC[name]].take(pa.array(labels))
    values: Vectors = taken.to_numpy(zero_copy_only=False).astype(np.float32)
    if name not in ("x", "y"):
        values[values <= 0] = np.nan
    return values


def first_values(column: pa.ListArray) -> pa.Array:
    """The first value of each list, null where it has none."""
    has_one = pa.compute.fill_null(pa.compute.greater(pa.compute.list_value_length(column), 0), False)
    first = np.full(len(column), None, object)
    first[has_one.to_numpy(zero_copy_only=False)] = pa.compute.list_element(column.filter(has_one), 0)
    return pa.array(first, column.type.value_type)


def strongest_tags(tags: Tags, levels: Levels) -> NDArray[np.object_]:
    """The label of the tag that stands out most, (tracks,); "" where a track has none."""
    labels = np.array([*tags.labels, ""], object)
    if not tags.labels or not len(levels):
        return np.full(len(levels), "", object)
    standardised = np.where(tags.has(levels, tags.labels), tags.standardise(levels, tags.labels), -np.inf)
    best = standardised.argmax(axis=1)
    best[np.isneginf(standardised.max(axis=1))] = len(tags.labels)
    strongest: NDArray[np.object_] = labels[best]
    return strongest


def tag_probabilities(tags: Tags, levels: Levels, label: str) -> Vectors:
    """The probability of one tag, (tracks,), NaN where it is unknown."""
    return probabilities(levels[:, tags.columns([label])])[:, 0]
