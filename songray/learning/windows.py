"""Windows of spectrograms: random ones in batches that a model learns from, and tiled ones that it embeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from songray.audio.spectrograms import Input, Spectrogram
from songray.keys import Keys
from songray.learning.models.base import Batch, Embedder, Padding
from songray.learning.runs import Pooling
from songray.library import Vectors

JACKKNIFE_PARTS = 5  # of a clip's windows


def tile(clip: Input, frames: int | None, hop: int | None = None, padding: Padding = "repeat") -> Input:
    """Windows at every `hop` frames from the start, by default side by side: (windows, frames, bins).

    No window exceeds the end: the remaining frames are not used. A clip shorter than one window is padded.
    Where `frames` is None, the whole clip is one window.
    """
    if frames is None:
        return clip[None]
    padded = pad(clip, frames, padding)
    return _cut(padded, np.arange(0, len(padded) - frames + 1, hop or frames), frames)


def random_windows(
    clip: Input, frames: int, count: int, seed: Sequence[int], padding: Padding = "repeat"
) -> Input:
    """Windows at random positions, equal for equal seeds: (count, frames, bins). They may overlap.

    No window exceeds the end. A clip shorter than one window is padded.
    """
    padded = pad(clip, frames, padding)
    starts = np.random.default_rng(seed).integers(0, len(padded) - frames + 1, count)
    return _cut(padded, starts, frames)


def pad(clip: Input, frames: int, padding: Padding) -> Input:
    """At least `frames` frames: a shorter clip is repeated from its start, or followed by silence."""
    missing = frames - len(clip)
    if missing <= 0:
        return clip
    if padding == "repeat":
        return np.resize(clip, (frames, clip.shape[1]))
    return np.pad(clip, ((0, missing), (0, 0)))


def _cut(clip: Input, starts: NDArray[np.int64], frames: int) -> Input:
    return np.stack([clip[start : start + frames] for start in starts])


class Clips(NamedTuple):
    """Tracks that a model learns from."""

    keys: Keys
    recordings: Keys  # equal for tracks of the same recording
    spectrograms: Sequence[Spectrogram]  # (frames, bins) each
    targets: NDArray[np.float32] | None = None  # (clips, …)

    def take(self, positions: NDArray[np.int64]) -> Clips:
        spectrograms = [self.spectrograms[position] for position in positions]
        targets = None if self.targets is None else self.targets[positions]
        return Clips(self.keys[positions], self.recordings[positions], spectrograms, targets)


def learning_batches(clips: Clips, model: Embedder, count: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, of `count` clips each.

    Each pass over the clips has its own random order and takes `model.views` windows of each clip. Clips that
    remain after the last full batch are not used; where there are too few for one, all form one batch.
    """
    passes = range(model.windows_per_clip // model.views)
    orders = [np.random.default_rng([seed, epoch, number]).permutation(len(clips.keys)) for number in passes]
    order = np.concatenate(orders)
    pass_numbers = np.repeat(passes, len(clips.keys))
    for start in range(0, max(1, len(order) - count + 1), count):
        batch = slice(start, start + count)
        yield learning_batch(clips.take(order[batch]), model, seed, epoch, pass_numbers[batch])


def learning_batch(
    clips: Clips, model: Embedder, seed: int, epoch: int, passes: NDArray[np.int64] | int
) -> Batch:
    """Windows of clips, uint8. Their positions depend on the clip, the seed, the epoch and the pass alone,
    not on the worker or on the rest of the batch."""
    assert model.frames is not None
    pass_numbers = np.broadcast_to(passes, len(clips.keys))
    windows = [
        random_windows(spectrogram, model.frames, model.views, (seed, epoch, number, key), model.padding)
        for spectrogram, key, number in zip(clips.spectrograms, clips.keys, pass_numbers, strict=True)
    ]
    targets = None if clips.targets is None else torch.from_numpy(np.repeat(clips.targets, model.views, 0))
    recordings = torch.from_numpy(np.repeat(clips.recordings, model.views))
    return Batch(torch.from_numpy(np.concatenate(windows)), recordings, targets)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, its windows as floats in 0…1."""
    targets = None if batch.targets is None else batch.targets.to(device)
    return Batch(to_float(batch.windows.to(device)), batch.recordings.to(device), targets)


def to_float(windows: torch.Tensor) -> torch.Tensor:
    """Stored windows, uint8 → 0…1, as models take them; those of waveforms are floats already."""
    return windows if windows.is_floating_point() else windows.to(torch.float32) / 255


@torch.inference_mode()
def embed_clips(
    model: Embedder, clips: Sequence[Input], pooling: Pooling = "mean", half: bool = False
) -> Vectors:
    """One vector a clip, pooled over its windows: (clips, dimension), or twice that with deviations."""
    return pool_clips(embed_windows(model, clips, half), pooling)


def pool_clips(clips: Sequence[torch.Tensor], pooling: Pooling) -> Vectors:
    """The vectors of clips from those of their windows."""
    vectors: Vectors = torch.stack([pool(windows, pooling) for windows in clips]).numpy()
    return vectors


@torch.inference_mode()
def tag_clips(model: Embedder, clips: Sequence[torch.Tensor]) -> Vectors:
    """The mean probability of each tag over the windows of a clip, given by their vectors: (clips, tags)."""
    probabilities = [model.tag(windows.to(_device(model))).mean(0) for windows in clips]
    tags: Vectors = torch.stack(probabilities).cpu().numpy()
    return tags


@torch.inference_mode()
def jackknife_clips(model: Embedder, clips: Sequence[Input], pooling: Pooling = "mean") -> list[Vectors]:
    """For each clip, (1 + parts, dimension): its pooled vector and, where the model's scale is "wccn" and the
    clip has more than one window, those without each fifth of its windows in turn. Their differences
    estimate the sampling variance of the vector of a clip (the jackknife)."""
    return [
        torch.stack([pool(windows, pooling) for windows in (clip, *_leave_one_out(model, clip))]).numpy()
        for clip in embed_windows(model, clips)
    ]


def _leave_one_out(model: Embedder, windows: torch.Tensor) -> list[torch.Tensor]:
    if model.scale != "wccn" or len(windows) == 1:
        return []
    parts = windows.tensor_split(min(JACKKNIFE_PARTS, len(windows)))
    return [torch.cat([*parts[:left], *parts[left + 1 :]]) for left in range(len(parts))]


@torch.inference_mode()
def embed_windows(model: Embedder, clips: Sequence[Input], half: bool = False) -> list[torch.Tensor]:
    """For each clip the vectors of its windows, (windows, dimension).

    Windows are embedded in batches of one size, the last one padded with silence: kernels round differently
    for other sizes, and the vector of a clip must not depend on its batch. Where a window is a whole clip,
    clips are embedded one by one.
    """
    tiles = [tile(clip, model.frames, model.hop, model.padding) for clip in clips]
    size = model.batch_windows if _device(model).type == "cpu" else model.gpu_batch_windows
    batches = tiles if model.frames is None else _batches(tiles, size)
    vectors = [_embed_batch(model, batch, half) for batch in batches]
    counts = [len(windows) for windows in tiles]
    return list(torch.split(torch.cat(vectors)[: sum(counts)], counts)) if vectors else []


def _batches(tiles: list[Input], size: int) -> list[Input]:
    if not tiles:
        return []
    windows = np.concatenate(tiles)
    padded = np.pad(windows, ((0, -len(windows) % size), (0, 0), (0, 0)))
    return np.split(padded, len(padded) // size)


def _embed_batch(model: Embedder, windows: Input, half: bool) -> torch.Tensor:
    device = _device(model)
    with torch.autocast(device.type, torch.float16, enabled=half):
        vectors = model.embed(to_float(torch.tensor(windows, device=device)))
    return vectors.to("cpu", torch.float32)


def _device(model: Embedder) -> torch.device:
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


def pool(windows: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """The vectors of a clip's windows, (windows, dimension) → (dimension,), or twice that."""
    mean = windows.mean(0)
    return mean if pooling == "mean" else torch.cat([mean, windows.std(0, correction=0)])
