"""The split of tracks by artist and recording."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import MissingInput
from songray.keys import track_key
from songray.learning.split import read_split, split, write_split
from songray.library import Library

catalogues = st.lists(st.sets(st.sampled_from("ABCDEFGHIJ"), max_size=3), min_size=2, max_size=30)


def catalogue(artists: list[set[str]], recordings: list[str | None] | None = None) -> pa.Table:
    ids = [f"t:{number}" for number in range(len(artists))]
    return pa.table(
        {
            "track_key": pa.array([track_key(track_id, 0) for track_id in ids], pa.int64()),
            "track_id": ids,
            "artist_ids": pa.array([sorted(names) for names in artists], pa.list_(pa.string())),
            "recording": pa.array(recordings or [None] * len(ids), pa.string()),
            "isrc": pa.nulls(len(ids), pa.string()),
        }
    )


@given(catalogues, st.floats(0.05, 0.95), st.integers(0, 5))
def test_every_track_is_in_one_part_and_no_part_is_empty(
    artists: list[set[str]], share: float, seed: int
) -> None:
    table = catalogue(artists)
    parts = split(table, share, seed)
    assert parts.train.size and parts.validation.size
    assert sorted([*parts.train, *parts.validation]) == sorted(table["track_key"].to_pylist())


@given(catalogues, st.integers(0, 5))
def test_no_artist_is_in_both_parts(artists: list[set[str]], seed: int) -> None:
    table = catalogue([*artists, {"X"}, {"Y"}])  # never a single group
    parts = split(table, 0.3, seed)
    held_out = np.isin(table["track_key"].to_numpy(), parts.validation)
    names: tuple[set[str], set[str]] = (set(), set())
    for track_artists, part in zip(table["artist_ids"].to_pylist(), held_out, strict=True):
        names[int(part)].update(track_artists)
    assert not names[0] & names[1]


def test_tracks_of_a_recording_are_in_one_part() -> None:
    table = catalogue([set()] * 40, [f"r{number // 4}" for number in range(40)])
    held_out = np.isin(table["track_key"].to_numpy(), split(table, 0.4, 0).validation)
    assert {int(group.sum()) for group in held_out.reshape(10, 4)} == {0, 4}


def test_tracks_of_a_recording_map_to_their_least_key() -> None:
    table = catalogue([set()] * 6, ["r", None, "r", "s", None, None])
    isrcs = pa.array([None, "GB1", None, "GB2", "GB1", None], pa.string())
    table = table.set_column(table.schema.get_field_index("isrc"), "isrc", isrcs)
    keys = table["track_key"].to_pylist()
    same_recording = split(table, 0.5, 0).same_recording
    first = [same_recording.get(key, key) for key in keys]
    assert first[0] == first[2] == min(keys[0], keys[2]) and first[1] == first[4] == min(keys[1], keys[4])
    assert (first[3], first[5]) == (keys[3], keys[5]) and len(same_recording) == 2


def test_a_group_keeps_its_part_when_tracks_are_added() -> None:
    before = catalogue([{f"artist {number}"} for number in range(50)])
    after = catalogue([{f"artist {number}"} for number in range(80)])
    held_out = set(split(before, 0.3, 0).validation)
    assert held_out == set(split(after, 0.3, 0).validation) & set(before["track_key"].to_pylist())


def test_a_single_track_cannot_be_split() -> None:
    with pytest.raises(MissingInput, match="1 tracks: at least two are needed"):
        split(catalogue([{"A"}]), 0.1, 0)


def test_a_stored_split_is_read_again(library: Library) -> None:
    assert read_split(library, "r") is None
    library.filesystem.create_dir(library.path("runs", "r"), recursive=True)
    parts = split(catalogue([{"A"}, {"B"}, set(), set()], [None, None, "r", "r"]), 0.5, 0)
    write_split(library, "r", parts)
    stored = read_split(library, "r")
    assert stored is not None and parts.same_recording
    assert np.array_equal(stored.train, parts.train) and np.array_equal(stored.validation, parts.validation)
    assert stored.same_recording == parts.same_recording
