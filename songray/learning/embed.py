"""Reads spectrograms and a run, writes embeddings: one unit vector a track, and the probabilities of the
run's tags. Those of a run that joins others are joined from the embeddings of these."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from songray.audio.extract import decode_block
from songray.audio.sets import extraction_of, usable_keys
from songray.learning import runs
from songray.learning.members import Members, Places
from songray.learning.runs import Run
from songray.library import Library, Vectors, matrix, tag_matrix
from songray.stages import RETAIN_MEMORY, Stage
from songray.summary import Summary
from songray.table import Table
from songray.tables import TABLES

if TYPE_CHECKING:  # Ray and torch are imported in functions: jobs import this module for its options
    import ray

    from songray.learning.encoder import ModelEncoder
    from songray.learning.fusion import Fusion, JoinedTags

TAGS_TYPE = TABLES["embeddings"].columns["tags"]


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
    output = library.table("embeddings", run.name)
    output.claim({"run": run.name, "model": run.model, "made_with": run.made_with, "half": config.half})
    step = _join if run.members else _encode
    return step(library, run, output, config)


def _encode(library: Library, run: Run, output: Table, config: EmbedConfig) -> Summary:
    """A model that takes waveforms reads the previews that its set could decode, and decodes them anew."""
    waveform = runs.model_config(run).waveform
    source = library.table("previews") if waveform else library.table("spectrograms", run.set)
    only = usable_keys(library, run.set) if waveform else None
    with Stage(f"embed {run.name}", library, source, output, config.rows_per_file, only) as stage:
        if stage.has_pending:
            import ray.data

            rows = stage.read()
            if waveform:
                rows = rows.map_batches(
                    decode_block,
                    fn_args=(extraction_of(library, run.set, (waveform,)), stage.tally),
                    batch_size=config.batch_tracks,
                    batch_format="pyarrow",
                )
            batch_tracks = min(config.batch_tracks, stage.rows_per_file)
            actors = _initial_actors(config, math.ceil(stage.pending.keys.size / batch_tracks))
            (
                rows.map_batches(
                    EmbedWorker,
                    fn_constructor_args=(library, run.name, config, stage.tally),
                    batch_size=batch_tracks,
                    batch_format="pyarrow",
                    num_gpus=1 if config.gpu else None,
                    compute=ray.data.ActorPoolStrategy(
                        min_size=1, initial_size=actors, max_size=config.actors
                    ),
                    runtime_env=RETAIN_MEMORY,
                )
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .write_parquet(output.path, **stage.write_options())
            )
    return stage.summary


def _initial_actors(config: EmbedConfig, batches: int) -> int:
    """The number of processes that start together: Ray Data's pool would leave nearly all of a short input to
    its first one, and processes on all CPUs would leave none to the tasks that read and write."""
    import ray

    return max(1, min(config.actors, batches, int(ray.available_resources().get("CPU", 0) / 2)))


class EmbedWorker:
    """Actor that holds the encoder of a run."""

    def __init__(self, library: Library, run: str, config: EmbedConfig, tally: ray.actor.ActorHandle) -> None:
        from songray.learning import encoder

        loaded = encoder.load_model(library, runs.choose(library, run))
        loaded.model.to("cuda" if config.gpu else "cpu")
        self.encoder, self.tally = replace(loaded, half=config.half), tally

    def __call__(self, rows: pa.Table) -> pa.Table:
        embeddings = embed_batch(rows, self.encoder)
        self.tally.add.remote(embeddings.num_rows)
        return embeddings


def embed_batch(rows: pa.Table, encoder: ModelEncoder) -> pa.Table:
    """Rows of spectrograms or waveforms → rows of embeddings."""
    from songray.audio.inputs import from_bytes

    inputs = {spec: [from_bytes(cell.as_py(), spec) for cell in rows[spec]] for spec in encoder.specs}
    return _embeddings(rows, *encoder.encode_with_tags(inputs))


def _embeddings(rows: pa.Table, vectors: Vectors, tags: Vectors | None) -> pa.Table:
    """Rows of embeddings: vectors, (tracks, dimension), and tags, (tracks, tags), NaN where unknown."""
    return pa.table(
        {
            "track_key": rows["track_key"],
            "track_id": rows["track_id"],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            "tags": pa.nulls(len(vectors), TAGS_TYPE) if tags is None else _lists(tags.astype(np.float16)),
        }
    )


def _lists(tags: NDArray[np.float16]) -> pa.ListArray:
    """A list for each row of tags; null where they are unknown."""
    offsets = np.arange(len(tags) + 1, dtype=np.int32) * tags.shape[1]
    is_unknown = pa.array(np.isnan(tags).any(axis=1))
    return pa.ListArray.from_arrays(offsets, tags.ravel(), mask=is_unknown)


def _join(library: Library, run: Run, output: Table, config: EmbedConfig) -> Summary:
    """The tracks that all members of the run have embedded get their joined vector."""
    from songray.learning import fusion

    members = Members.of(library, (runs.member(library, run, name).name for name in run.members))
    tags = fusion.JoinedTags([runs.tags_of(library, runs.member(library, run, name)) for name in run.members])
    source = members.tables[0]
    with Stage(f"embed {run.name}", library, source, output, config.rows_per_file, members.common) as stage:
        if stage.has_pending:
            places = members.store_places(stage.pending.keys)
            (
                stage.read()
                .map_batches(
                    _join_block,
                    fn_args=(fusion.load(library, run), tags, places, stage.tally),
                    batch_size=stage.rows_per_file,
                    batch_format="pyarrow",
                )
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .write_parquet(output.path, **stage.write_options())
            )
    stage.summary.remarks += [
        f"{count} tracks of other members are not in {name}: run `songray embed --run {name.split('/')[1]}`"
        for name, count in members.missing().items()
        if count
    ]
    return stage.summary


def _join_block(
    rows: pa.Table, fusion: Fusion, tags: JoinedTags, places: Places, tally: ray.actor.ActorHandle
) -> pa.Table:
    import ray

    joined = join_batch(rows, fusion, tags, places)
    ray.get(tally.add.remote(joined.num_rows))  # counted before the stage ends
    return joined


def join_batch(rows: pa.Table, fusion: Fusion, tags: JoinedTags, places: Places) -> pa.Table:
    """Rows of tracks that all members have embedded → rows of joined embeddings. Those of the first member
    are read again: files of earlier versions have no tags."""
    rows = rows.sort_by("track_key")
    tables = places.read(rows["track_key"].to_numpy(), ["embedding", "tags"])
    vectors = fusion.join([matrix(table["embedding"]) for table in tables])
    known = [
        tag_matrix(table["tags"], len(labels)) for table, labels in zip(tables, tags.members, strict=True)
    ]
    return _embeddings(rows, vectors, tags.join(known))
