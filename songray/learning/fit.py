"""What is fitted in one pass over clips: models without gradients, and the scale of a model's vectors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from songray.audio.extract import COLUMNS, Extraction, decoded, extract_batch
from songray.audio.inputs import from_bytes
from songray.audio.sets import extraction_of
from songray.audio.spectrograms import is_waveform
from songray.learning.encoder import ModelEncoder, fit_encoder
from songray.learning.feed import READ_CLIPS, arrow, clip_rows, select_batch, shuffled_files
from songray.learning.loop import build_model
from songray.learning.models.base import Embedder
from songray.learning.models.build import pretrained_weights
from songray.learning.models.config import ModelConfig
from songray.learning.runs import Pooling
from songray.learning.split import Split
from songray.learning.windows import jackknife_clips, tile, to_float
from songray.library import Library
from songray.stages import dataset
from songray.table import Table

SCALE_TRACKS, SCALE_FILES = 1000, 64  # at most, on whose vectors the scale is fitted
CENTRE_TRACKS = 50  # of which the mean is taken where nothing else is fitted; 25 gave the same neighbours


def fit_baseline(library: Library, set_name: str, config: ModelConfig, seed: int, parts: Split) -> Embedder:
    """A model without optimizers, fitted on the windows of the training part where it has what to fit."""
    model = build_model(config, seed, pretrained_weights(config))
    if not model.is_fitted:
        return model
    rows = clip_rows(library, set_name, model, parts.train, parts.same_recording)
    fitted: Embedder = ray.get(ray.remote(_fit).options(num_cpus=0).remote(model, rows))
    return fitted


def _fit(model: Embedder, rows: ray.data.Dataset) -> Embedder:
    batches = rows.iter_batches(**arrow(READ_CLIPS))
    clips = (from_bytes(cell.as_py(), model.spec) for batch in batches for cell in batch[model.spec])
    model.fit(to_float(torch.tensor(tile(clip, model.frames, model.hop, model.padding))) for clip in clips)
    return model


def fit_scale(
    library: Library, set_name: str, model: Embedder, parts: Split, pooling: Pooling
) -> ModelEncoder:
    """The encoder of a model, with the scale fitted on the vectors of a sample of the training part."""
    source, columns = _source(library, set_name, model.spec)
    files = shuffled_files(source, columns[-1])[:SCALE_FILES]
    keys = source.read(["track_key"], files=files)["track_key"]
    # Keys are sorted hashes: the first ones are a random sample.
    most = CENTRE_TRACKS if model.scale == "centre" else SCALE_TRACKS
    sample = np.intersect1d(parts.train, keys)[:most]
    rows = dataset(source, columns, files)
    batch = partial(
        jackknife_batch,
        keys=ray.put(sample),
        model=ray.put(model.eval()),
        pooling=pooling,
        extraction=extraction_of(library, set_name, (model.spec,)),
    )
    blocks = rows.map_batches(batch, batch_format="pyarrow", batch_size=READ_CLIPS).to_arrow_refs()
    table = pa.concat_tables(ray.get(blocks)).sort_by("track_key")
    length = model.dimension * (1 if pooling == "mean" else 2)
    clips = [flat.values.to_numpy().reshape(-1, length) for flat in table["vectors"]]
    return fit_encoder(model, clips, pooling)


def _source(library: Library, set_name: str, spec: str) -> tuple[Table, list[str]]:
    """The table that has the input of a model, and the columns of it that are read: a set of spectrograms, or
    the previews, which are decoded anew."""
    if is_waveform(spec):
        return library.table("previews"), COLUMNS
    return library.table("spectrograms", set_name), ["track_key", spec]


def jackknife_batch(
    rows: pa.Table, keys: ray.ObjectRef, model: ray.ObjectRef, pooling: Pooling, extraction: Extraction
) -> pa.Table:
    """Rows of spectrograms, or of previews, which are decoded → for those with one of the keys, the flattened
    vectors of jackknife_clips."""
    embedder: Embedder = ray.get(model)
    selected = select_batch(rows, keys)
    if is_waveform(embedder.spec):
        selected = decoded(extract_batch(selected, extraction)[0])
    clips = [from_bytes(cell.as_py(), embedder.spec) for cell in selected[embedder.spec]]
    vectors = [clip.ravel() for clip in jackknife_clips(embedder, clips, pooling)]
    return pa.table(
        {"track_key": selected["track_key"], "vectors": pa.array(vectors, pa.list_(pa.float32()))}
    )
