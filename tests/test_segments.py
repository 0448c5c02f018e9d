from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.library import track_key
from songray.segments import split, tile

catalogues = st.lists(st.sets(st.sampled_from("ABCDEFGHIJ"), max_size=3), min_size=2, max_size=30)


def catalogue(artists: list[set[str]], recordings: list[str | None] | None = None) -> pa.Table:
    ids = [f"t:{number}" for number in range(len(artists))]
    return pa.table(
        {
            "track_key": pa.array([track_key(one, 0) for one in ids], pa.int64()),
            "track_id": ids,
            "artist_ids": pa.array([sorted(several) for several in artists], pa.list_(pa.string())),
            "recording": pa.array(recordings or [None] * len(ids), pa.string()),
        }
    )


@given(st.integers(1, 700), st.integers(1, 300))
def test_tiles_follow_each_other_and_stay_inside(length: int, frames: int) -> None:
    spectrogram = np.arange(length * 2, dtype=np.uint8).reshape(length, 2)
    tiles = tile(spectrogram, frames)
    assert tiles.shape == (max(1, length // frames), frames, 2)
    if length >= frames:
        assert np.array_equal(tiles.reshape(-1, 2), spectrogram[: len(tiles) * frames])
    else:  # repeated from its start
        assert np.array_equal(tiles[0], spectrogram[np.arange(frames) % length])


def test_none_asks_for_the_whole_clip() -> None:
    assert tile(np.zeros((7, 2), np.uint8), None).shape == (1, 7, 2)


@given(catalogues, st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_split_parts_all_tracks_and_no_side_is_empty(
    artists: list[set[str]], share: float, seed: int
) -> None:
    table = catalogue(artists)
    parts = split(table, share, seed)
    assert parts.train.size and parts.validation.size
    assert sorted([*parts.train, *parts.validation]) == sorted(table["track_key"].to_pylist())


@given(catalogues, st.integers(0, 5))
def test_no_artist_stands_on_both_sides(artists: list[set[str]], seed: int) -> None:
    table = catalogue([*artists, {"X"}, {"Y"}])  # never one group alone
    parts = split(table, 0.3, seed)
    held = np.isin(table["track_key"].to_numpy(), parts.validation)
    names = table["artist_ids"].to_pylist()
    sides: tuple[set[str], set[str]] = (set(), set())
    for several, side in zip(names, held, strict=True):
        sides[int(side)].update(several)
    assert not sides[0] & sides[1]


def test_takes_of_a_recording_stay_together() -> None:
    table = catalogue([set()] * 40, [f"r{number // 4}" for number in range(40)])
    held = np.isin(table["track_key"].to_numpy(), split(table, 0.4, 0).validation)
    assert {int(group.sum()) for group in held.reshape(10, 4)} == {0, 4}


def test_a_group_keeps_its_side_when_others_come() -> None:
    before = catalogue([{f"artist {number}"} for number in range(50)])
    after = catalogue([{f"artist {number}"} for number in range(80)])
    held = set(split(before, 0.3, 0).validation)
    assert held == set(split(after, 0.3, 0).validation) & set(before["track_key"].to_pylist())


def test_one_track_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="1 tracks: two are needed"):
        split(catalogue([{"A"}]), 0.1, 0)
