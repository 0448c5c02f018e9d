"""Reads spectrograms and a run, writes embeddings: one unit vector a track."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from songray.audio.spectrograms import SPECS, from_bytes
from songray.learning import runs
from songray.library import Library
from songray.stages import RETAIN_MEMORY, Stage
from songray.summary import Summary

if TYPE_CHECKING:  # Ray and torch are imported in functions: jobs import this module for its options
    import ray

    from songray.learning.encoder import Encoder


@dataclass(frozen=True)
class EmbedConfig:
    run: str = ""
    """Name of the run whose model embeds; it may be empty where only one run exists."""
    actors: int = 2
    """Largest number of processes that hold the model."""
    batch_tracks: int = 32
    """Number of tracks in a batch of the model."""
    gpu: bool = False
    """Give each process a GPU."""
    half: bool = False
    """Use automatic mixed precision with float16, on a GPU. The vectors differ slightly, so they are never
    mixed with others in one table."""
    rows_per_file: int = 8192
    """Largest number of tracks that are finished together, as one file; fewer where few are pending."""


def embed(library: Library, config: EmbedConfig) -> Summary:
    """Compute the vectors of the tracks that have none under this run."""
    run = runs.choose(library, config.run)
    source, output = library.table("spectrograms", run.set), library.table("embeddings", run.name)
    output.claim({"run": run.name, "model": run.model, "made_with": run.made_with, "half": config.half})
    with Stage(f"embed {run.name}", library, source, output, config.rows_per_file) as stage:
        if stage.has_pending:
            import ray.data

            (
                stage.read()
                .map_batches(
                    EmbedWorker,
                    fn_constructor_args=(library, run.name, config, stage.tally),
                    batch_size=config.batch_tracks,
                    batch_format="pyarrow",
                    num_gpus=1 if config.gpu else None,
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=config.actors),
                    runtime_env=RETAIN_MEMORY,
                )
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .write_parquet(output.path, **stage.write_options())
            )
    return stage.summary


class EmbedWorker:
    """Actor that holds the encoder of a run."""

    def __init__(self, library: Library, run: str, config: EmbedConfig, tally: ray.actor.ActorHandle) -> None:
        from songray.learning import encoder

        self.encoder = encoder.load(library, runs.choose(library, run))
        self.encoder.model.to("cuda" if config.gpu else "cpu")
        self.half, self.tally = config.half, tally

    def __call__(self, rows: pa.Table) -> pa.Table:
        embeddings = embed_batch(rows, self.encoder, self.half)
        self.tally.add.remote(embeddings.num_rows)
        return embeddings


def embed_batch(rows: pa.Table, encoder: Encoder, half: bool = False) -> pa.Table:
    """Rows of spectrograms → rows of embeddings."""
    from songray.learning.encoder import encode

    spec = encoder.model.spec
    spectrograms = [from_bytes(cell.as_py(), SPECS[spec]) for cell in rows[spec]]
    vectors = encode(encoder, spectrograms, half)  # (tracks, dimension)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table({"track_key": rows["track_key"], "track_id": rows["track_id"], "embedding": column})
