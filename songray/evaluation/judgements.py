"""Judgements of listeners: how often a run is preferred to the one beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from songray.errors import InvalidOption
from songray.evaluation.intervals import Observations
from songray.library import Library, Row

METRICS = {"preferred": "the share of the comparisons in which listeners prefer it; a half for no difference"}
TASK = "listening-test"
COLUMNS = ("session", "track_id", "left", "right", "preferred")
AS_TEXT = pa.csv.ConvertOptions(
    include_columns=COLUMNS, column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False
)


def read_judgements(library: Library, files: Sequence[str]) -> list[Row]:
    """The judgements of a library, and of files that the page offers where it cannot store them. Raises
    InvalidOption for a file that is none."""
    rows: list[Row] = library.table("judgements").read(list(COLUMNS)).to_pylist()
    for path in files:
        try:
            found = pa.csv.read_csv(path, convert_options=AS_TEXT)
        except (OSError, pa.ArrowException) as error:
            raise InvalidOption(f"--judgements {path}: {error}") from error
        rows += found.to_pylist()
    return rows


def preferences(judgements: Sequence[Row]) -> dict[str, Observations]:
    """For each run that was compared, what listeners said; each session is one observation."""
    values: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in judgements:
        for side, run in (("left", row["left"]), ("right", row["right"])):
            value = 0.5 if row["preferred"] == "neither" else float(row["preferred"] == side)
            values[run].append((value, row["session"]))
    found = {}
    for run, pairs in values.items():
        shares, sessions = zip(*pairs, strict=True)
        groups = np.unique(sessions, return_inverse=True)[1].astype(np.int64)
        found[run] = Observations({"preferred": np.array(shares)}, groups, 0.5)
    return found
