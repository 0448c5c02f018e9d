"""Spectrograms → the windows that a model asks for, and which tracks a model may learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from songray.audio.transform import Spectrogram
from songray.learning.models.base import Batch, Embedder, Short
from songray.learning.runs import Pooling
from songray.library import Keys, Vectors, sample_rank

PARTS = 5  # of a clip, that are left out in turn
BATCH_WINDOWS = 16  # that go through a model together; more are not faster on a CPU


def tile(
    spectrogram: Spectrogram, frames: int | None, hop: int | None = None, short: Short = "repeat"
) -> Spectrogram:
    """Windows at every `hop` frames from the start, by default side by side: (windows, frames, bins).

    No window crosses the end: what is left there is not used. A clip shorter than one window is filled
    as `short` says. None asks for the clip as it is.
    """
    if frames is None:
        return spectrogram[None]
    filled = fill_up(spectrogram, frames, short)
    return _cut(filled, np.arange(0, len(filled) - frames + 1, hop or frames), frames)


def draw(
    spectrogram: Spectrogram, frames: int, count: int, seed: Sequence[int], short: Short = "repeat"
) -> Spectrogram:
    """Windows at random places, the same for the same seed: (count, frames, bins). They may overlap, and
    none crosses the end. A clip shorter than one window is filled as `short` says."""
    filled = fill_up(spectrogram, frames, short)
    starts = np.random.default_rng(seed).integers(0, len(filled) - frames + 1, count)
    return _cut(filled, starts, frames)


def fill_up(spectrogram: Spectrogram, frames: int, short: Short) -> Spectrogram:
    """At least so many frames: a shorter clip is repeated from its start, or followed by silence."""
    missing = frames - len(spectrogram)
    if missing <= 0:
        return spectrogram
    if short == "repeat":
        return np.resize(spectrogram, (frames, spectrogram.shape[1]))
    return np.pad(spectrogram, ((0, missing), (0, 0)))


def _cut(spectrogram: Spectrogram, starts: NDArray[np.int64], frames: int) -> Spectrogram:
    return np.stack([spectrogram[start : start + frames] for start in starts])


class Clips(NamedTuple):
    """Some tracks, as a model learns from them."""

    keys: Keys
    recordings: Keys  # the same for takes of one
    spectrograms: Sequence[Spectrogram]  # (frames, bins) each
    targets: NDArray[np.float32] | None = None  # (clips, …)

    def take(self, positions: NDArray[np.int64]) -> Clips:
        chosen = [self.spectrograms[position] for position in positions]
        targets = None if self.targets is None else self.targets[positions]
        return Clips(self.keys[positions], self.recordings[positions], chosen, targets)


def learning_batches(clips: Clips, model: Embedder, count: int, seed: int, epoch: int) -> Iterator[Batch]:
    """An epoch's batches, of `count` clips each, without Ray: every pass over the clips has an order of its
    own, and takes `model.views` windows of each. What is left after the last whole batch is not used;
    where there is no whole one, all is one batch."""
    passes = range(model.windows_per_clip // model.views)
    orders = [np.random.default_rng([seed, epoch, one]).permutation(len(clips.keys)) for one in passes]
    order = np.concatenate(orders)
    number = np.repeat(passes, len(clips.keys))
    for start in range(0, max(1, len(order) - count + 1), count):
        chosen = slice(start, start + count)
        yield learning_batch(clips.take(order[chosen]), model, seed, epoch, number[chosen])


def learning_batch(
    clips: Clips, model: Embedder, seed: int, epoch: int, passes: NDArray[np.int64] | int
) -> Batch:
    """Windows of some clips, uint8: places depend on the clip, the epoch and the pass alone, not on who
    cuts them or what else is in the batch."""
    assert model.frames is not None
    several = [
        draw(spectrogram, model.frames, model.views, (seed, epoch, one, key), model.short)
        for spectrogram, key, one in zip(
            clips.spectrograms, clips.keys, np.broadcast_to(passes, len(clips.keys)), strict=True
        )
    ]
    targets = None if clips.targets is None else torch.from_numpy(np.repeat(clips.targets, model.views, 0))
    windows = torch.from_numpy(np.concatenate(several))
    return Batch(windows, torch.from_numpy(np.repeat(clips.recordings, model.views)), targets)


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, its windows scaled there to what a model takes."""
    targets = None if batch.targets is None else batch.targets.to(device)
    return Batch(scaled(batch.windows.to(device)), batch.recordings.to(device), targets)


@dataclass(frozen=True)
class Split:
    """Keys of the tracks to learn from and of those to judge by, sorted."""

    train: Keys
    validation: Keys
    same_recording: dict[int, int] = field(default_factory=dict)  # the least key of them


def split(tracks: pa.Table, validation_share: float, seed: int) -> Split:
    """Part tracks by artist: artists who share a track form one group, as do takes of one recording.

    A salted hash of the group decides, so a group stays on its side when the catalogue grows by
    others. Neither side is empty: where chance would have it so, the group nearest to the boundary
    crosses it; where all tracks form one group, each track counts as a group of its own.
    Raises ValueError where there are fewer than two tracks.
    """
    keys = tracks.column("track_key").to_numpy()
    if keys.size < 2:
        raise ValueError(f"{keys.size} tracks: two are needed to learn from one and judge by the other")
    groups = _groups(tracks)
    if len(set(groups)) == 1:
        groups = tracks.column("track_id").to_pylist()
    place = np.array([sample_rank(str(seed), group) for group in groups])
    in_validation = place < validation_share
    if not in_validation.any():
        in_validation = place == place.min()
    elif in_validation.all():
        in_validation = place != place.max()
    return Split(np.sort(keys[~in_validation]), np.sort(keys[in_validation]), _twins(tracks))


def _twins(tracks: pa.Table) -> dict[int, int]:
    """For tracks whose recording, by the catalogue or by ISRC, others are of too: the least key of them,
    which itself has none."""
    rows = tracks.select(["track_key", "recording", "isrc"]).to_pylist()
    takes = sorted((row["track_key"], recording) for row in rows if (recording := _recording(row)))
    least: dict[str, int] = {}
    pairs = {key: least.setdefault(recording, key) for key, recording in takes}
    return {key: first for key, first in pairs.items() if key != first}


def _recording(row: dict[str, Any]) -> str:
    return row["recording"] or row["isrc"] or ""


def _groups(tracks: pa.Table) -> list[str]:
    """For each track the name of its group: the first, in order, of the members that tie it together."""
    told = tracks.select(["track_id", "artist_ids", "recording", "isrc"])
    members = [_members(row) for row in told.to_pylist()]
    names = sorted({name for several in members for name in several})
    number = {name: position for position, name in enumerate(names)}
    ties = [(number[several[0]], number[other]) for several in members for other in several]
    ends = np.array(ties).T
    graph = coo_array((np.ones(len(ties)), (ends[0], ends[1])), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    return [names[first[component[number[several[0]]]]] for several in members]


def _members(row: dict[str, Any]) -> Sequence[str]:
    artists, recording = row["artist_ids"], _recording(row)
    return [*artists, *([f"recording:{recording}"] if recording else [])] or [str(row["track_id"])]


@torch.inference_mode()
def pooled(
    model: Embedder, spectrograms: Sequence[Spectrogram], pooling: Pooling = "mean", half: bool = False
) -> Vectors:
    """One vector a clip from those of its windows: (clips, dimension), twice as long with deviations.

    Windows go through the model in batches of one size, the last one filled up with silence: kernels round
    differently for other sizes, and a clip must get the same vector whatever comes with it. Clips that a
    model takes whole go one by one.
    """
    clips = _windows(model, spectrograms, half)
    stacked: Vectors = torch.stack([pool(windows, pooling) for windows in clips]).numpy()
    return stacked


@torch.inference_mode()
def jackknifed(
    model: Embedder, spectrograms: Sequence[Spectrogram], pooling: Pooling = "mean"
) -> list[Vectors]:
    """Of each clip, (1 + parts, dimension): its pooled vector and, where the model's scale needs them, one
    without each fifth of its windows in turn, if it has several. How these differ tells how far chance moves
    the vector of a clip (the jackknife)."""
    return [
        torch.stack([pool(windows, pooling) for windows in (whole, *_without_a_part(model, whole))]).numpy()
        for whole in _windows(model, spectrograms)
    ]


def _without_a_part(model: Embedder, windows: torch.Tensor) -> list[torch.Tensor]:
    if model.scale != "steady" or len(windows) == 1:
        return []
    parts = windows.tensor_split(min(PARTS, len(windows)))
    return [torch.cat([*parts[:left], *parts[left + 1 :]]) for left in range(len(parts))]


def _windows(model: Embedder, spectrograms: Sequence[Spectrogram], half: bool = False) -> list[torch.Tensor]:
    """The vectors of each clip's windows, (windows, dimension)."""
    tiles = [tile(clip, model.frames, model.hop, model.short) for clip in spectrograms]
    batches = tiles if model.frames is None else _batches(np.concatenate(tiles)) if tiles else []
    found = [_embedded(model, batch, half) for batch in batches]
    counts = [len(windows) for windows in tiles]
    return list(torch.split(torch.cat(found)[: sum(counts)], counts)) if found else []


def _batches(windows: Spectrogram) -> list[Spectrogram]:
    full = np.pad(windows, ((0, -len(windows) % BATCH_WINDOWS), (0, 0), (0, 0)))
    return np.split(full, len(full) // BATCH_WINDOWS)


def _embedded(model: Embedder, windows: Spectrogram, half: bool) -> torch.Tensor:
    device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    with torch.autocast(device.type, torch.float16, enabled=half):
        vectors = model.embed(scaled(torch.tensor(windows, device=device)))
    return vectors.to("cpu", torch.float32)


def pool(windows: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """The vectors of a clip's windows, (windows, dimension), → one, (dimension,) or twice that."""
    mean = windows.mean(0)
    return mean if pooling == "mean" else torch.cat([mean, windows.std(0, correction=0)])


def scaled(windows: torch.Tensor) -> torch.Tensor:
    """Stored windows, uint8, as a model takes them: 0…1."""
    return windows.to(torch.float32) / 255
