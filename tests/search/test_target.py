"""What an index should contain, where tables repeat a row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from constructed import RUN, add_run, add_tracks, units

from songray import key_index
from songray.keys import REVISION_BITS, KeySet
from songray.library import Library
from songray.search.target import (
    TargetRanges,
    lowest_tracks,
    read_tracks,
    read_vectors,
    store_parts,
)


@pytest.mark.parametrize("same_file", [True, False])
def test_of_rows_that_repeat_a_key_the_newest_counts(library: Library, same_file: bool) -> None:
    add_tracks(add_run(library), units(20))
    embeddings, tracks = library.table("embeddings", RUN), library.table("tracks")
    for table, changes in ((embeddings, {"embedding": units(1, seed=9)[0].tolist()}), (tracks, {"crawl": 2})):
        rows = table.read()
        repeated = rows.slice(3, 1).to_pylist()[0] | changes
        if "title" in repeated:
            repeated["title"] = "Later"
        later = pa.Table.from_pylist([repeated], rows.schema)
        if same_file:
            table.delete(table.files())
            # The newer description of a track before the older: `crawl` decides, not the place.
            table.append(pa.concat_tables([later, rows] if "crawl" in changes else [rows, later]), "0")
        else:
            table.append(later, "later")
    target = lowest_tracks(library, RUN, 1000)
    assert len(target) == 20
    described = read_tracks(library, target, ["track_id", "title"])
    (row,) = np.flatnonzero(np.array(described["track_id"].to_pylist()) == "a:3")
    assert described["title"][row].as_py() == "Later"
    vectors = read_vectors(library, RUN, target)
    assert vectors[row] == pytest.approx(units(1, seed=9)[0])
    others = [int(name[2:]) for name in described["track_id"].to_pylist() if name != "a:3"]
    assert np.delete(vectors, row, axis=0) == pytest.approx(units(20)[others])


@pytest.mark.parametrize("capacity, first", [(7, 0), (30, 0), (1000, 0), (7, 5), (1000, 20), (7, 100)])
def test_parts_are_those_of_all_tracks_by_files(
    library: Library, cluster: None, capacity: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key indexes have four ranges, the embeddings files of different sizes."""
    monkeypatch.setattr(key_index, "RANGE_ROWS", 16)
    add_run(library)
    for first, count in ((0, 25), (25, 3), (28, 32)):
        add_tracks(library, units(count), first=first)
    every = lowest_tracks(library, RUN, 1000)
    ranges = TargetRanges.of(library, RUN)
    assert len(ranges.intervals) == 4 and len(every) == 60
    parts = [part.load() for part in store_parts(ranges, ranges.files, capacity, first)]
    by_file = np.argsort(every.rows["file"], kind="stable")
    own, others = by_file[:first], by_file[first:]
    expected = [own] if first else []
    if others.size:
        expected += np.array_split(others, -(-len(others) // capacity))
    assert len(parts) == len(expected)
    for part, chosen in zip(parts, expected, strict=True):
        assert np.array_equal(part.rows, every.rows[np.sort(chosen)])
        assert (part.embedding_files, part.track_files) == (every.embedding_files, every.track_files)


def test_a_sample_is_of_the_lowest_keys_but_for_some(library: Library) -> None:
    add_tracks(add_run(library), units(40))
    every = lowest_tracks(library, RUN, 1000)
    without = KeySet(every.rows["key"][[0, 5]] >> REVISION_BITS)
    rest = lowest_tracks(library, RUN, 10, without)
    assert rest.rows["key"].tolist() == np.delete(every.rows["key"], [0, 5])[:10].tolist()
