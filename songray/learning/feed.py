"""Stored clips → the batches of a training worker, through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import ray.data
import torch

from songray.audio.spectrograms import SPECS, from_bytes
from songray.errors import MissingInput
from songray.keys import Keys, are_among
from songray.learning.models.base import Batch, Embedder
from songray.learning.targets import targets_of
from songray.learning.windows import Clips, learning_batch, learning_batches, to_device
from songray.library import Library
from songray.stages import dataset
from songray.table import Table

TYPICAL_SECONDS = 30  # of a clip
SHUFFLED_CLIPS = 1024  # size of the shuffle buffer of a worker that does not keep its clips in memory
READ_CLIPS = 64  # clips that are read at a time


def clip_rows(
    library: Library, set_name: str, model: Embedder, keys: Keys, same_recording: dict[int, int]
) -> ray.data.Dataset:
    """Rows of the tracks with these keys, which are sorted: `track_key`, `recording` (equal for tracks of the
    same recording, see split.Split), the stored spectrogram and, where the model declares a target table,
    `target`."""
    spectrograms = library.table("spectrograms", set_name)
    files = shuffled_files(spectrograms, model.spec)
    # One block a file, so that the order of rows does not depend on the size of the cluster.
    rows = dataset(spectrograms, ["track_key", model.spec], files, blocks=len(files))
    if model.target is None:
        rows = rows.map_batches(select_batch, fn_args=(ray.put(keys),), batch_format="pyarrow")
    else:
        targets = ray.put(targets_of(library, model, keys))
        rows = rows.map_batches(_join_targets_batch, fn_args=(targets,), batch_format="pyarrow")
    return rows.map_batches(_add_recording_batch, fn_args=(ray.put(same_recording),), batch_format="pyarrow")


def shuffled_files(spectrograms: Table, spec: str) -> list[str]:
    """The files of a set in a random order, always the same: a catalogue lists similar tracks together.

    Raises MissingInput where the set does not have the spec.
    """
    files = spectrograms.files()
    schema = pa.parquet.read_schema(files[0], filesystem=spectrograms.filesystem)
    if spec not in schema.names:
        raise MissingInput(
            f"{spectrograms.name} has no column {spec}, the input of this model: run `songray transform "
            f"--specs {spec} --set NAME` with a new name, and train with that --set"
        )
    shuffled: list[str] = np.random.default_rng(0).permutation(files).tolist()
    return shuffled


def select_batch(rows: pa.Table, keys: ray.ObjectRef) -> pa.Table:
    """The rows that have one of the keys, which are sorted."""
    return rows.filter(pa.array(are_among(rows["track_key"].to_numpy(), ray.get(keys))))


def _join_targets_batch(rows: pa.Table, reference: ray.ObjectRef) -> pa.Table:
    targets: pa.Table = ray.get(reference)
    position = pa.compute.index_in(rows["track_key"], targets["track_key"].combine_chunks())
    joined = rows.append_column("target", targets["target"].take(position))
    return joined.filter(position.is_valid())


def _add_recording_batch(rows: pa.Table, reference: ray.ObjectRef) -> pa.Table:
    same_recording: dict[int, int] = ray.get(reference)
    recordings = [same_recording.get(key, key) for key in rows["track_key"].to_pylist()]
    return rows.append_column("recording", pa.array(recordings, pa.int64()))


@dataclass(frozen=True)
class FeedConfig:
    """What a worker reads, and how."""

    tracks: int  # of this worker
    batch_clips: int  # in each of its batches
    seed: int
    keep_bytes: float  # clips are kept in memory up to this size
    device: torch.device


class Feed:
    """The batches of one worker, from clips that are kept in memory where they fit, or read in each pass."""

    def __init__(self, shard: ray.data.DataIterator, model: Embedder, config: FeedConfig) -> None:
        self.shard, self.model, self.config = shard, model, config
        self.kept: Clips | None = None
        spec, tracks = SPECS[model.spec], config.tracks
        clip_bytes = TYPICAL_SECONDS * spec.rate / spec.hop_length * spec.bins
        if tracks * clip_bytes <= config.keep_bytes:
            self.kept = concatenate([self._clips(rows) for rows in shard.iter_batches(**arrow(READ_CLIPS))])
            tracks = len(self.kept.keys)
        passes = model.windows_per_clip // model.views
        self.steps = max(1, tracks * passes // config.batch_clips)  # in an epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, each prepared while the one before is used."""
        if self.kept is None:
            batches = self._streamed(number)
        else:
            config = self.config
            batches = learning_batches(self.kept, self.model, config.batch_clips, config.seed, number)
        yield from prefetch(to_device(batch, self.config.device) for batch in islice(batches, self.steps))

    def _streamed(self, epoch: int) -> Iterator[Batch]:
        seed = self.config.seed
        for number in range(self.model.windows_per_clip // self.model.views):
            shuffle = {
                "local_shuffle_buffer_size": SHUFFLED_CLIPS,
                "local_shuffle_seed": hash((seed, epoch, number)) % 2**31,
            }
            for rows in self.shard.iter_batches(**arrow(self.config.batch_clips), **shuffle):
                yield learning_batch(self._clips(rows), self.model, seed, epoch, number)

    def _clips(self, rows: pa.Table) -> Clips:
        spec = self.model.spec
        spectrograms = [from_bytes(cell.as_py(), SPECS[spec]) for cell in rows[spec]]
        clips = Clips(rows["track_key"].to_numpy(), rows["recording"].to_numpy(), spectrograms)
        if self.model.target is None:
            return clips
        targets = rows["target"].combine_chunks().flatten().to_numpy()
        return clips._replace(targets=targets.reshape(len(spectrograms), -1))


def arrow(rows: int) -> dict[str, Any]:
    """Arguments of iter_batches for Arrow tables of so many rows."""
    return {"batch_size": rows, "batch_format": "pyarrow"}


def concatenate(parts: list[Clips]) -> Clips:
    targets = [part.targets for part in parts if part.targets is not None]
    return Clips(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.recordings for part in parts]),
        [spectrogram for part in parts for spectrogram in part.spectrograms],
        np.concatenate(targets) if targets else None,
    )


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each prepared in another thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, batches, None)
        while (batch := future.result()) is not None:
            future = thread.submit(next, batches, None)
            yield batch
