"""What listeners prefer, from the table and from files that the page offers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from songray.errors import InvalidOption
from songray.evaluation.intervals import estimate
from songray.evaluation.judgements import preferences, read_judgements
from songray.library import Library, Row

# Twelve listeners prefer a to b in three of four comparisons, on either side, and once say neither.
PREFERRED = ("left", "right", "left", "neither")


def judgements(listeners: int) -> list[Row]:
    sides = [("a", "b"), ("b", "a"), ("b", "a"), ("a", "b")]
    return [
        {"session": f"session-{number}", "track_id": f"t:{place}", "left": left, "right": right,
         "preferred": preferred}
        for number in range(listeners)
        for place, ((left, right), preferred) in enumerate(zip(sides, PREFERRED, strict=True))
    ]  # fmt: skip


def test_a_run_is_preferred_by_the_share_of_its_comparisons() -> None:
    found = preferences(judgements(12))
    assert found["a"].values["preferred"].tolist() == [1.0, 1.0, 0.0, 0.5] * 12
    assert (found["a"].values["preferred"] + found["b"].values["preferred"] == 1).all()
    interval = estimate(found["a"].values["preferred"], found["a"].groups)
    assert (interval.mean, interval.low) == (0.625, 0.625)  # all sessions are alike
    few = preferences(judgements(9))["a"]
    assert estimate(few.values["preferred"], few.groups).low is None


def test_judgements_of_files_are_added_to_those_of_the_library(library: Library, tmp_path: Path) -> None:
    table, at = library.table("judgements"), datetime(2026, 1, 1, tzinfo=UTC)
    rows = [{"at": at + timedelta(seconds=number), **row} for number, row in enumerate(judgements(2))]
    table.append(pa.Table.from_pylist(rows, table.schema()), "1")
    path = tmp_path / "judgements.csv"
    path.write_text(
        'session,at,track_id,left,right,preferred\n"0123","2026-01-01T00:00:00Z","7","a","b","right"\n'
    )
    found = read_judgements(library, [str(path)])
    assert found[:-1] == judgements(2)
    assert found[-1] == {"session": "0123", "track_id": "7", "left": "a", "right": "b", "preferred": "right"}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_file_of_something_else_is_named(library: Library, tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(InvalidOption, match=r"--judgements .*other\.csv"):
        read_judgements(library, [str(path)])
