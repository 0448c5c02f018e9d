"""Spectrograms → the windows that a model asks for, and which tracks a model may learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from songray.library import Keys, hash64
from songray.models.base import Embedder
from songray.spectrograms import Spectrogram


def tile(spectrogram: Spectrogram, frames: int | None) -> Spectrogram:
    """Consecutive windows from the start, (windows, frames, bins); what is left at the end is not used.

    A clip shorter than one window is repeated until it fills it. None asks for the clip as it is.
    """
    length, bins = spectrogram.shape
    if frames is None:
        return spectrogram[None]
    if length < frames:
        return np.resize(spectrogram, (1, frames, bins))
    return spectrogram[: length // frames * frames].reshape(-1, frames, bins)


@dataclass(frozen=True)
class Split:
    """Keys of the tracks to learn from and of those to judge by, sorted."""

    train: Keys
    validation: Keys


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
    place = np.array([(hash64(str(seed), group) >> 11) / 2**53 % 1.0 for group in groups])
    in_validation = place < validation_share
    if not in_validation.any():
        in_validation = place == place.min()
    elif in_validation.all():
        in_validation = place != place.max()
    return Split(np.sort(keys[~in_validation]), np.sort(keys[in_validation]))


def _groups(tracks: pa.Table) -> list[str]:
    """For each track the name of its group: the first, in order, of the members that tie it together."""
    members = [_members(row) for row in tracks.select(["track_id", "artist_ids", "recording"]).to_pylist()]
    names = sorted({name for several in members for name in several})
    number = {name: position for position, name in enumerate(names)}
    ties = [(number[several[0]], number[other]) for several in members for other in several]
    ends = np.array(ties).T
    graph = coo_array((np.ones(len(ties)), (ends[0], ends[1])), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    return [names[first[component[number[several[0]]]]] for several in members]


def _members(row: dict[str, object]) -> Sequence[str]:
    artists, recording = row["artist_ids"], row["recording"]
    assert isinstance(artists, list)
    return [*artists, *([f"recording:{recording}"] if recording else [])] or [str(row["track_id"])]


@torch.inference_mode()
def pooled(model: Embedder, spectrograms: Sequence[Spectrogram]) -> NDArray[np.float32]:
    """One vector a clip, the mean over its windows: (clips, dimension).

    The windows of a clip are a batch of their own: kernels round differently for other batch sizes, and a
    clip must get the same vector whatever comes with it.
    """
    vectors = [model.embed(scaled(torch.tensor(tile(clip, model.frames)))).mean(0) for clip in spectrograms]
    stacked: NDArray[np.float32] = torch.stack(vectors).numpy()
    return stacked


def scaled(windows: torch.Tensor) -> torch.Tensor:
    """Stored windows, uint8, as a model takes them: 0…1."""
    return windows.to(torch.float32) / 255
