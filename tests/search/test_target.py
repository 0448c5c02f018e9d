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
    find_changes,
    lowest_tracks,
    read_tracks,
    read_vectors,
    signatures,
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


@pytest.mark.parametrize("capacity", [7, 30, 1000])
def test_parts_are_those_of_all_tracks_by_files(
    library: Library, cluster: None, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key indexes have four ranges, the embeddings files of different sizes."""
    monkeypatch.setattr(key_index, "RANGE_ROWS", 16)
    add_run(library)
    for first, count in ((0, 25), (25, 3), (28, 32)):
        add_tracks(library, units(count), first=first)
    every = lowest_tracks(library, RUN, 1000)
    assert len(library.table("tracks").key_index().intervals) == 4 and len(every) == 60
    parts = [part.load() for part in store_parts(library, RUN, capacity)]
    expected = every.split(capacity)
    assert len(parts) == len(expected) == -(-60 // capacity)
    for part, other in zip(parts, expected, strict=True):
        assert np.array_equal(part.rows, other.rows)
        assert (part.embedding_files, part.track_files) == (other.embedding_files, other.track_files)


def test_a_sample_is_of_the_lowest_keys_but_for_some(library: Library) -> None:
    add_tracks(add_run(library), units(40))
    every = lowest_tracks(library, RUN, 1000)
    without = KeySet(every.rows["key"][[0, 5]] >> REVISION_BITS)
    rest = lowest_tracks(library, RUN, 10, without)
    assert rest.rows["key"].tolist() == np.delete(every.rows["key"], [0, 5])[:10].tolist()


@pytest.mark.parametrize("repeated", [False, True])
def test_changes_are_what_is_missing_and_what_is_obsolete(library: Library, repeated: bool) -> None:
    """Some tracks are indexed, some with another checksum, some are not in the tables any more."""
    add_tracks(add_run(library), units(60))
    every = signatures(lowest_tracks(library, RUN, 1000).rows)
    random = np.random.default_rng(0)
    kept, gone = random.choice(every, 25, replace=False), random.integers(0, 1 << 62, 7).astype(np.uint64)
    indexed = np.concatenate([kept, kept[:3] if repeated else kept[:0], gone])
    changes = find_changes(library, RUN, np.sort(indexed))
    assert changes.tracks == 60
    assert np.array_equal(np.sort(signatures(changes.missing.rows)), np.setdiff1d(every, kept))
    assert np.array_equal(changes.obsolete, np.sort(gone))
    assert len(find_changes(library, RUN, np.empty(0, np.uint64)).missing) == 60
