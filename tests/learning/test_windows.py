from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from songray.learning.models.base import Embedder
from songray.learning.windows import Clips, draw, learning_batch, learning_batches, split, tile
from songray.library import track_key

catalogues = st.lists(st.sets(st.sampled_from("ABCDEFGHIJ"), max_size=3), min_size=2, max_size=30)


def catalogue(artists: list[set[str]], recordings: list[str | None] | None = None) -> pa.Table:
    ids = [f"t:{number}" for number in range(len(artists))]
    return pa.table(
        {
            "track_key": pa.array([track_key(one, 0) for one in ids], pa.int64()),
            "track_id": ids,
            "artist_ids": pa.array([sorted(several) for several in artists], pa.list_(pa.string())),
            "recording": pa.array(recordings or [None] * len(ids), pa.string()),
            "isrc": pa.nulls(len(ids), pa.string()),
        }
    )


lengths = st.integers(1, 700)
windows = st.integers(1, 300)


def counted(length: int) -> np.ndarray:
    """A clip whose every frame tells its place."""
    return np.stack([np.arange(length) % 256, np.arange(length) // 256], axis=1).astype(np.uint8)


def places(cut: np.ndarray) -> np.ndarray:
    return cut[..., 0] + 256 * cut[..., 1].astype(int)  # (windows, frames)


@given(lengths, windows)
def test_tiles_follow_each_other_and_stay_inside(length: int, frames: int) -> None:
    spectrogram = counted(length)
    tiles = tile(spectrogram, frames)
    assert tiles.shape == (max(1, length // frames), frames, 2)
    if length >= frames:
        assert np.array_equal(tiles.reshape(-1, 2), spectrogram[: len(tiles) * frames])
    else:  # repeated from its start
        assert np.array_equal(places(tiles)[0], np.arange(frames) % length)


@given(lengths, windows, st.integers(1, 300))
def test_overlapping_tiles_start_a_hop_apart_and_leave_less_than_a_hop(
    length: int, frames: int, hop: int
) -> None:
    found = places(tile(counted(length), frames, hop))
    if length >= frames:
        assert np.array_equal(found[:, 0], np.arange(len(found)) * hop)
        assert (np.diff(found) == 1).all()
        assert found.max() < length < found.max() + 1 + hop


@given(lengths, windows, st.integers(1, 5), st.integers(0, 9))
def test_drawn_windows_stay_inside_and_come_again_under_their_seed(
    length: int, frames: int, count: int, seed: int
) -> None:
    clip = counted(length)
    found = draw(clip, frames, count, (seed, 7))
    assert found.shape == (count, frames, 2)
    assert np.array_equal(found, draw(clip, frames, count, (seed, 7)))
    if length >= frames:
        assert (np.diff(places(found)) == 1).all()
        assert places(found).max() < length


def test_windows_are_drawn_from_everywhere() -> None:
    starts = places(draw(counted(12), 3, 500, (0,)))[:, 0]
    assert set(starts) == set(range(10))


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_short_clip_is_followed_by_silence_where_the_model_says_so(length: int, more: int) -> None:
    clip = np.full((length, 2), 9, np.uint8)
    for cut in (tile(clip, length + more, short="silence"), draw(clip, length + more, 1, (0,), "silence")):
        assert (cut[0, :length] == 9).all() and (cut[0, length:] == 0).all()


class Pairs(Embedder):
    frames, views, windows_per_clip = 4, 2, 6


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_takes_as_many_windows_of_each_clip_as_the_model_says(
    clips: int, count: int, seed: int
) -> None:
    of = Clips(*[np.arange(clips) * 10] * 2, [np.full((9, 2), number, np.uint8) for number in range(clips)])
    batches = list(learning_batches(of, Pairs(), count, seed, epoch=1))
    again = list(learning_batches(of, Pairs(), count, seed, epoch=1))
    taken = np.concatenate([batch.recordings.numpy() for batch in batches])
    whole = 3 * clips // count * count or 3 * clips  # what is left after the last whole batch is not used
    assert taken.size == 2 * whole
    assert (taken.reshape(-1, 2)[:, 0] == taken.reshape(-1, 2)[:, 1]).all()  # views lie side by side
    assert np.bincount(taken // 10, minlength=clips).max() <= 6
    for one, two in zip(batches, again, strict=True):
        assert torch.equal(one.windows, two.windows)
        assert (one.windows[:, 0, 0].long() * 10 == one.recordings).all()


def test_epochs_differ_in_order_and_places() -> None:
    of = Clips(*[np.arange(30)] * 2, [counted(100)] * 30)
    one, two = (next(learning_batches(of, Pairs(), 30, 0, epoch)) for epoch in (1, 2))
    assert not torch.equal(one.recordings, two.recordings)
    assert not torch.equal(one.windows, two.windows)


def test_a_clips_windows_are_the_same_in_whatever_batch() -> None:
    of = Clips(*[np.arange(8)] * 2, [counted(100 + number) for number in range(8)])
    together = learning_batch(of, Pairs(), 0, 1, 0)
    alone = learning_batch(of.take(np.array([5])), Pairs(), 0, 1, 0)
    assert torch.equal(together.windows[10:12], alone.windows)


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


def test_takes_of_a_recording_have_its_number_and_are_no_others_of_each_other() -> None:
    table = catalogue([set()] * 6, ["r", None, "r", "s", None, None])
    isrcs = pa.array([None, "GB1", None, "GB2", "GB1", None], pa.string())
    table = table.set_column(table.schema.get_field_index("isrc"), "isrc", isrcs)
    keys = table["track_key"].to_pylist()
    same_recording = split(table, 0.5, 0).same_recording
    named = [same_recording.get(key, key) for key in keys]
    assert named[0] == named[2] == min(keys[0], keys[2]) and named[1] == named[4] == min(keys[1], keys[4])
    assert (named[3], named[5]) == (keys[3], keys[5]) and len(same_recording) == 2
    of = Clips(np.array(keys), np.array(named), [counted(100)] * 6)
    batch = learning_batch(of, Pairs(), 0, 1, 0)
    assert batch.recordings.tolist() == np.repeat(named, Pairs.views).tolist()


def test_a_group_keeps_its_side_when_others_come() -> None:
    before = catalogue([{f"artist {number}"} for number in range(50)])
    after = catalogue([{f"artist {number}"} for number in range(80)])
    held = set(split(before, 0.3, 0).validation)
    assert held == set(split(after, 0.3, 0).validation) & set(before["track_key"].to_pylist())


def test_one_track_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="1 tracks: two are needed"):
        split(catalogue([{"A"}]), 0.1, 0)
