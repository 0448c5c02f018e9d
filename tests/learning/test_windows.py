"""Windows of spectrograms, and the batches that a model learns from."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from songray.learning.models.base import Embedder
from songray.learning.windows import Clips, learning_batch, learning_batches, random_windows, tile

lengths = st.integers(1, 700)
frame_counts = st.integers(1, 300)


def numbered(length: int) -> np.ndarray:
    """A clip whose every frame contains its own number."""
    return np.stack([np.arange(length) % 256, np.arange(length) // 256], axis=1).astype(np.uint8)


def numbers(windows: np.ndarray) -> np.ndarray:
    return windows[..., 0] + 256 * windows[..., 1].astype(int)  # (windows, frames)


@given(lengths, frame_counts)
def test_tiles_are_side_by_side_and_within_the_clip(length: int, frames: int) -> None:
    spectrogram = numbered(length)
    tiles = tile(spectrogram, frames)
    assert tiles.shape == (max(1, length // frames), frames, 2)
    if length >= frames:
        assert np.array_equal(tiles.reshape(-1, 2), spectrogram[: len(tiles) * frames])
    else:  # repeated from its start
        assert np.array_equal(numbers(tiles)[0], np.arange(frames) % length)


@given(lengths, frame_counts, st.integers(1, 300))
def test_overlapping_tiles_start_a_hop_apart_and_omit_less_than_a_hop(
    length: int, frames: int, hop: int
) -> None:
    tiles = numbers(tile(numbered(length), frames, hop))
    if length >= frames:
        assert np.array_equal(tiles[:, 0], np.arange(len(tiles)) * hop)
        assert (np.diff(tiles) == 1).all()
        assert tiles.max() < length < tiles.max() + 1 + hop


@given(lengths, frame_counts, st.integers(1, 5), st.integers(0, 9))
def test_random_windows_are_within_the_clip_and_equal_for_equal_seeds(
    length: int, frames: int, count: int, seed: int
) -> None:
    clip = numbered(length)
    windows = random_windows(clip, frames, count, (seed, 7))
    assert windows.shape == (count, frames, 2)
    assert np.array_equal(windows, random_windows(clip, frames, count, (seed, 7)))
    if length >= frames:
        assert (np.diff(numbers(windows)) == 1).all()
        assert numbers(windows).max() < length


def test_random_windows_start_at_every_position() -> None:
    starts = numbers(random_windows(numbered(12), 3, 500, (0,)))[:, 0]
    assert set(starts) == set(range(10))


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_short_clip_is_padded_with_silence_where_the_model_declares_it(length: int, more: int) -> None:
    clip, frames = np.full((length, 2), 9, np.uint8), length + more
    for windows in (
        tile(clip, frames, padding="silence"),
        random_windows(clip, frames, 1, (0,), "silence"),
    ):
        assert (windows[0, :length] == 9).all() and (windows[0, length:] == 0).all()


def test_without_a_window_length_the_clip_is_one_window() -> None:
    assert tile(np.zeros((7, 2), np.uint8), None).shape == (1, 7, 2)


class Pairs(Embedder):
    frames, views, windows_per_clip = 4, 2, 6


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_has_as_many_windows_of_each_clip_as_the_model_declares(
    clips: int, batch_clips: int, seed: int
) -> None:
    keys = np.arange(clips) * 10
    inputs = Clips(keys, keys, [np.full((9, 2), number, np.uint8) for number in range(clips)])
    batches = list(learning_batches(inputs, Pairs(), batch_clips, seed, epoch=1))
    again = list(learning_batches(inputs, Pairs(), batch_clips, seed, epoch=1))
    recordings = np.concatenate([batch.recordings.numpy() for batch in batches])
    full = 3 * clips // batch_clips * batch_clips or 3 * clips  # clips after the last full batch are not used
    assert recordings.size == 2 * full
    assert (recordings.reshape(-1, 2)[:, 0] == recordings.reshape(-1, 2)[:, 1]).all()  # views are adjacent
    assert np.bincount(recordings // 10, minlength=clips).max() <= 6
    for batch, other in zip(batches, again, strict=True):
        assert torch.equal(batch.windows, other.windows)
        assert (batch.windows[:, 0, 0].long() * 10 == batch.recordings).all()


def test_epochs_differ_in_order_and_positions() -> None:
    inputs = Clips(*[np.arange(30)] * 2, [numbered(100)] * 30)
    first, second = (next(learning_batches(inputs, Pairs(), 30, 0, epoch)) for epoch in (1, 2))
    assert not torch.equal(first.recordings, second.recordings)
    assert not torch.equal(first.windows, second.windows)


def test_the_windows_of_a_clip_do_not_depend_on_its_batch() -> None:
    inputs = Clips(*[np.arange(8)] * 2, [numbered(100 + number) for number in range(8)])
    together = learning_batch(inputs, Pairs(), 0, 1, 0)
    alone = learning_batch(inputs.take(np.array([5])), Pairs(), 0, 1, 0)
    assert torch.equal(together.windows[10:12], alone.windows)


def test_windows_have_the_recording_of_their_clip() -> None:
    inputs = Clips(np.arange(6), np.array([0, 1, 0, 3, 1, 5]), [numbered(100)] * 6)
    batch = learning_batch(inputs, Pairs(), 0, 1, 0)
    assert batch.recordings.tolist() == np.repeat([0, 1, 0, 3, 1, 5], Pairs.views).tolist()
