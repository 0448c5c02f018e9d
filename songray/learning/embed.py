"""Reads spectrograms and a run, writes embeddings: one vector of length 1 a track."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import ray.data

from songray.audio.transform import SPECS, Spectrogram, from_bytes
from songray.learning import runs
from songray.learning.runs import Encoder
from songray.learning.windows import pooled
from songray.library import Library, Vectors
from songray.stages import RETAIN_MEMORY, Summary, fill


@dataclass(frozen=True)
class EmbedConfig:
    run: str = ""
    """Run whose model embeds; may be left out where there is only one."""
    actors: int = 2
    """Processes that hold the model at once."""
    batch_tracks: int = 32
    """Tracks that go through the model together."""
    gpu: bool = False
    """Give each process a GPU."""
    half: bool = False
    """Multiply in fp16: for GPUs. The vectors differ a little, so they are never mixed with others."""
    rows_per_file: int = 8192
    """The most tracks that are finished together, as one file; fewer where there is little to do."""


def embed(library: Library, config: EmbedConfig) -> Summary:
    """Compute the vectors of the tracks that have none yet under this run."""
    run = runs.choose(library, config.run)
    output = library.table("embeddings", run.name)
    output.claim({"run": run.name, "model": run.model, "made_with": run.made_with, "half": config.half})

    def plan(rows: ray.data.Dataset, tally: ray.actor.ActorHandle, block_rows: int) -> ray.data.Dataset:
        embedded = rows.map_batches(
            EmbedWorker,
            fn_constructor_args=(library, run.name, config, tally),
            batch_size=config.batch_tracks,
            batch_format="pyarrow",
            num_gpus=1 if config.gpu else None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=config.actors),
            runtime_env=RETAIN_MEMORY,
        )
        return embedded.repartition(target_num_rows_per_block=block_rows, strict=True)

    source = library.table("spectrograms", run.set)
    return fill(f"embed {run.name}", source, output, plan, config.rows_per_file)


class EmbedWorker:
    """Worker: holds the run's encoder."""

    def __init__(self, library: Library, run: str, config: EmbedConfig, tally: ray.actor.ActorHandle) -> None:
        self.encoder = runs.load(library, runs.choose(library, run))
        self.encoder.model.to("cuda" if config.gpu else "cpu")
        self.half, self.tally = config.half, tally

    def __call__(self, rows: pa.Table) -> pa.Table:
        embedded = embed_batch(rows, self.encoder, self.half)
        self.tally.add.remote(embedded.num_rows)
        return embedded


def embed_batch(rows: pa.Table, encoder: Encoder, half: bool = False) -> pa.Table:
    """Rows of spectrograms → as many rows of embeddings."""
    spec = encoder.model.spec
    units = vectors(encoder, [from_bytes(cell.as_py(), SPECS[spec]) for cell in rows[spec]], half)
    column = pa.FixedSizeListArray.from_arrays(pa.array(units.ravel()), units.shape[1])
    return pa.table({"track_key": rows["track_key"], "track_id": rows["track_id"], "embedding": column})


def vectors(encoder: Encoder, spectrograms: list[Spectrogram], half: bool = False) -> Vectors:
    """Spectrograms as they are stored, (frames, bins) each → unit vectors, (clips, dimension).

    What one clip gets does not depend on the others.
    """
    return encoder.unit(pooled(encoder.model, spectrograms, encoder.pooling, half))
