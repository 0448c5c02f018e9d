"""Stored clips → the batches of a worker that learns, through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import ray.data
import torch

from songray.audio.transform import SPECS, from_bytes
from songray.learning import factorize as latents
from songray.learning.models.base import Batch, Embedder
from songray.learning.windows import Clips, learning_batch, learning_batches, placed
from songray.library import Keys, Library, Table
from songray.stages import dataset

TYPICAL_SECONDS = 30  # of a clip
SHUFFLED_CLIPS = 1024  # among which a worker draws its batches where it cannot keep all
READ_CLIPS = 64  # at a time


def clips_of(
    library: Library, set_name: str, model: Embedder, keys: Keys, same_recording: dict[int, int]
) -> ray.data.Dataset:
    """Dataset of the clips of some tracks: track_key, `recording` (see
    windows.Split), the spectrogram as it is stored and, where the model predicts something, `target`. What is
    known of the tracks lies in Ray's object store."""
    spectrograms = library.table("spectrograms", set_name)
    files = by_lot(spectrograms, model.spec)
    # Each is a block, so that the order does not depend on the cluster's size.
    rows = dataset(spectrograms, ["track_key", model.spec], files, blocks=len(files))
    if model.target is None:
        mine = rows.map_batches(wanted, fn_args=(ray.put(keys),), batch_format="pyarrow")
    else:
        targets = ray.put(_targets(library, model.target, keys))
        mine = rows.map_batches(_with_targets, fn_args=(targets,), batch_format="pyarrow")
    return mine.map_batches(_named, fn_args=(ray.put(same_recording),), batch_format="pyarrow")


def _targets(library: Library, name: str, keys: Keys) -> pa.Table:
    targets = latents.newest(library.table(name))
    mine = targets.filter(pa.compute.is_in(targets["track_key"], pa.array(keys)))
    if not mine.num_rows:
        raise ValueError(f"{name} has none of the tracks to learn from: run jobs/factorize.py first")
    return mine


def by_lot(spectrograms: Table, spec: str) -> list[str]:
    """The files of a set in an order drawn by lot, which stays: a catalogue lists together what is alike.
    Raises ValueError where the set lacks a kind of spectrogram."""
    files = spectrograms.files()
    schema = pa.parquet.read_schema(files[0], filesystem=spectrograms.filesystem)
    if spec not in schema.names:
        raise ValueError(
            f"{spectrograms.name} has no {spec}, which this model eats: run jobs/transform.py with --specs "
            f"{spec} and another --set, and train with that --set"
        )
    drawn: list[str] = np.random.default_rng(0).permutation(files).tolist()
    return drawn


def wanted(rows: pa.Table, keys: ray.ObjectRef) -> pa.Table:
    return rows.filter(pa.compute.is_in(rows["track_key"], pa.array(ray.get(keys))))


def _named(rows: pa.Table, same_recording: ray.ObjectRef) -> pa.Table:
    of: dict[int, int] = ray.get(same_recording)
    recordings = [of.get(key, key) for key in rows["track_key"].to_pylist()]
    return rows.append_column("recording", pa.array(recordings, pa.int64()))


def _with_targets(rows: pa.Table, reference: ray.ObjectRef) -> pa.Table:
    targets: pa.Table = ray.get(reference)
    place = pa.compute.index_in(rows["track_key"], targets["track_key"].combine_chunks())
    known = rows.append_column("target", targets["factors"].take(place))
    return known.filter(place.is_valid())


class Feed:
    """What a worker gets of some clips: kept in memory where they fit, else read in every pass."""

    def __init__(
        self, shard: ray.data.DataIterator, tracks: int, model: Embedder, count: int, seed: int,
        keep_bytes: float, device: torch.device,
    ) -> None:  # fmt: skip
        """`tracks` are those of this worker, `count` its clips in a batch."""
        self.shard, self.model, self.count, self.seed, self.device = shard, model, count, seed, device
        self.kept: Clips | None = None
        spec = SPECS[model.spec]
        clip_bytes = TYPICAL_SECONDS * spec.rate / spec.hop_length * spec.bins
        if tracks * clip_bytes <= keep_bytes:
            self.kept = joined([self._clips(rows) for rows in shard.iter_batches(**arrow(READ_CLIPS))])
            tracks = len(self.kept.keys)
        self.steps = max(1, tracks * (model.windows_per_clip // model.views) // count)  # of an epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        """An epoch's batches, each made ready while the one before is worked on."""
        if self.kept is None:
            batches = self._streamed(number)
        else:
            batches = learning_batches(self.kept, self.model, self.count, self.seed, number)
        yield from ahead(placed(batch, self.device) for batch in islice(batches, self.steps))

    def _streamed(self, epoch: int) -> Iterator[Batch]:
        for one in range(self.model.windows_per_clip // self.model.views):
            shuffled = {
                "local_shuffle_buffer_size": SHUFFLED_CLIPS,
                "local_shuffle_seed": hash((self.seed, epoch, one)) % 2**31,
            }
            for rows in self.shard.iter_batches(**arrow(self.count), **shuffled):
                yield learning_batch(self._clips(rows), self.model, self.seed, epoch, one)

    def _clips(self, rows: pa.Table) -> Clips:
        spec = self.model.spec
        cells = [from_bytes(cell.as_py(), SPECS[spec]) for cell in rows[spec]]
        clips = Clips(rows["track_key"].to_numpy(), rows["recording"].to_numpy(), cells)
        if self.model.target is None:
            return clips
        targets = rows["target"].combine_chunks().flatten().to_numpy()
        return clips._replace(targets=targets.reshape(len(cells), -1))


def arrow(rows: int) -> dict[str, Any]:
    return {"batch_size": rows, "batch_format": "pyarrow"}


def joined(parts: list[Clips]) -> Clips:
    targets = [part.targets for part in parts if part.targets is not None]
    return Clips(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.recordings for part in parts]),
        [spectrogram for part in parts for spectrogram in part.spectrograms],
        np.concatenate(targets) if targets else None,
    )


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same, each made by another thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
