"""Clips as training reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stored_spectrograms import store_spectrograms

from songray.learning.feed import Feed, FeedConfig, clip_rows
from songray.learning.models import MODELS
from songray.learning.train import declared
from songray.library import Library


@pytest.mark.usefixtures("cluster")
def test_files_are_read_in_a_random_order_that_is_always_the_same(library: Library) -> None:
    for first in range(0, 18, 3):
        store_spectrograms(library, 3, first)
    stored_keys = library.table("spectrograms", "default").read(["track_key"])["track_key"].to_pylist()

    def read() -> list[int]:
        rows = clip_rows(library, "default", declared(MODELS["cae"]()), np.sort(stored_keys), {})
        rows.context.execution_options.preserve_order = True  # as in training
        return [row["track_key"] for row in rows.iter_rows()]

    order = read()
    assert sorted(order) == sorted(stored_keys)
    assert order != stored_keys
    assert read() == order


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("keep_bytes", [1e9, 0.0])
def test_a_feed_has_the_batches_of_an_epoch_whether_it_keeps_its_clips_or_not(
    library: Library, keep_bytes: float
) -> None:
    store_spectrograms(library, 10)
    keys = np.sort(library.table("spectrograms", "default").read(["track_key"])["track_key"].to_numpy())
    model = declared(MODELS["cae"]())
    rows = clip_rows(library, "default", model, keys[:8], {int(keys[1]): int(keys[0])})
    config = FeedConfig(tracks=8, batch_clips=4, seed=0, keep_bytes=keep_bytes, device=torch.device("cpu"))
    feed = Feed(rows.iterator(), model, config)
    assert feed.steps == 8
    batches = list(feed.epoch(1))
    assert [batch.windows.shape for batch in batches] == [(4, 256, 128)] * 8
    assert all(batch.windows.min() >= 0 and batch.windows.max() <= 1 for batch in batches)
    recordings = torch.cat([batch.recordings for batch in batches])
    assert set(recordings.tolist()) == set(keys[:8].tolist()) - {int(keys[1])}
    assert (recordings == keys[0]).sum() == 2 * 4  # four windows of each of two tracks
