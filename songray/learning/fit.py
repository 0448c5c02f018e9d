"""What is fitted in one pass over clips: models without players, and the scale of a model's vectors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from songray.audio.transform import SPECS, from_bytes
from songray.learning import runs
from songray.learning.feed import READ_CLIPS, arrow, by_lot, clips_of, wanted
from songray.learning.models.base import Embedder
from songray.learning.runs import Encoder, Pooling
from songray.learning.windows import Split, jackknifed, scaled, tile
from songray.library import Library
from songray.stages import dataset

SCALE_TRACKS, SCALE_FILES = 1000, 64  # whose vectors tell the scale: so many, from so many files at most


def fit_baseline(library: Library, set_name: str, model: Embedder, parts: Split) -> Embedder:
    """A model without players: as it is, or fitted on the windows of the tracks to learn from."""
    if not model.fitted:
        return model
    rows = clips_of(library, set_name, model, parts.train, parts.same_recording)
    fitted: Embedder = ray.get(ray.remote(_fitted).options(num_cpus=0).remote(model, rows))
    return fitted


def _fitted(model: Embedder, rows: ray.data.Dataset) -> Embedder:
    spec = SPECS[model.spec]
    batches = rows.iter_batches(**arrow(READ_CLIPS))
    clips = (from_bytes(cell.as_py(), spec) for batch in batches for cell in batch[model.spec])
    model.fit(scaled(torch.tensor(tile(clip, model.frames, model.hop, model.short))) for clip in clips)
    return model


def fit_scale(library: Library, set_name: str, model: Embedder, parts: Split, pooling: Pooling) -> Encoder:
    """The encoder with the scale of its vectors, from those of tracks that it learned from."""
    spectrograms = library.table("spectrograms", set_name)
    files = by_lot(spectrograms, model.spec)[:SCALE_FILES]
    here = spectrograms.read(["track_key"], files=files)["track_key"]
    sample = np.intersect1d(parts.train, here)[:SCALE_TRACKS]  # keys are hashes: the least are as by lot
    rows = dataset(spectrograms, ["track_key", model.spec], files)
    batch = partial(jackknifed_batch, keys=ray.put(sample), model=ray.put(model.eval()), pooling=pooling)
    blocks = rows.map_batches(batch, batch_format="pyarrow", batch_size=READ_CLIPS).to_arrow_refs()
    table = pa.concat_tables(ray.get(blocks)).sort_by("track_key")
    length = model.dimension * (1 if pooling == "mean" else 2)
    clips = [flat.values.to_numpy().reshape(-1, length) for flat in table["vectors"]]
    return runs.fitted(model, clips, pooling)


def jackknifed_batch(rows: pa.Table, keys: ray.ObjectRef, model: ray.ObjectRef, pooling: Pooling) -> pa.Table:
    """Rows of spectrograms → what `jackknifed` gives of those that are wanted, each flattened."""
    embedder: Embedder = ray.get(model)
    mine = wanted(rows, keys)
    clips = [from_bytes(cell.as_py(), SPECS[embedder.spec]) for cell in mine[embedder.spec]]
    vectors = [several.ravel() for several in jackknifed(embedder, clips, pooling)]
    return pa.table({"track_key": mine["track_key"], "vectors": pa.array(vectors, pa.list_(pa.float32()))})
