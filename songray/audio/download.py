"""Reads tracks, writes previews: the audio of each track, or why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from songray.audio.fetch import FetchConfig, Fetcher, Outcome
from songray.errors import InvalidOption
from songray.library import Library, Row
from songray.stages import Stage
from songray.summary import Summary
from songray.table import Table
from songray.tables import TABLES

if TYPE_CHECKING:
    import ray

SCHEMA = pa.schema(TABLES["previews"].columns)
ROW_GROUP_ROWS = 16  # so that one clip can be read without many others
ROWS_AT_ONCE = 16  # outcomes that a worker hands on together


@dataclass(frozen=True)
class DownloadConfig:
    fetch: FetchConfig = field(default_factory=FetchConfig)
    workers: int = 4
    """Worker processes; they mostly wait, and claim no CPU."""
    rows_per_file: int = 256
    """The most tracks of one file, which are finished together; fewer where few are pending. A worker holds
    the audio of so many tracks in memory."""
    max_failed_share: float = 0.5
    """Exit with an error where more than this share of the tracks of a run fails."""
    sample: int | None = None
    """Number of tracks of a random sample of the catalogue, always the same one, to which the download is
    restricted."""

    def __post_init__(self) -> None:
        for name in ("workers", "rows_per_file", "sample"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidOption(f"{name} is {value}: must be at least 1")


def download(library: Library, config: DownloadConfig) -> Summary:
    """Download the audio of the tracks that have no preview yet, and record permanent failures."""
    tracks, previews = library.table("tracks"), library.table("previews")
    sample = None if config.sample is None else tracks.sample_keys(config.sample)
    only = None if sample is None else lambda interval: sample
    with Stage("download", library, tracks, previews, config.rows_per_file, only) as stage:
        if stage.has_pending:
            from ray.data import TaskPoolStrategy

            removed = frozenset(library.table("removed").read(["track_id"])["track_id"].to_pylist())
            (
                stage.read()
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .map_batches(
                    download_batch,
                    fn_args=(config.fetch, stage.tally, removed),
                    batch_size=None,
                    batch_format="pyarrow",
                    compute=TaskPoolStrategy(size=config.workers),
                    num_cpus=0,
                )
                .write_parquet(previews.path, **stage.write_options(ROW_GROUP_ROWS, config.workers))
            )
    if stage.summary.done:
        repeated = count_repeated_audio(previews, stage.new_files)
        stage.summary.remarks.append(f"{repeated} of these have the same audio bytes as another one of them")
    stage.summary.check(config.max_failed_share)
    return stage.summary


def download_batch(
    tracks: pa.Table, config: FetchConfig, tally: ray.actor.ActorHandle, removed: Set[str] = frozenset()
) -> Iterator[pa.Table]:
    """Rows of tracks → rows of previews, as they finish. A retryable failure is counted and gets no row. The
    audio of `removed` tracks is a permanent failure."""
    import ray

    # asyncio.Runner formats each result of a task, which takes milliseconds a file.
    with closing(asyncio.new_event_loop()) as loop:
        outcomes = Fetcher(config, removed).outcomes(tracks.to_pylist())
        while finished := loop.run_until_complete(_next(outcomes)):
            rows = [outcome for outcome in finished if isinstance(outcome, dict)]
            retryable = [outcome for outcome in finished if isinstance(outcome, str)]
            ray.get(tally.add.remote(len(rows), retryable))
            yield _table(rows)


async def _next(outcomes: AsyncIterator[Outcome]) -> list[Outcome]:
    """The next ROWS_AT_ONCE outcomes, or what is left of them."""
    finished: list[Outcome] = []
    async for outcome in outcomes:
        finished.append(outcome)
        if len(finished) == ROWS_AT_ONCE:
            break
    return finished


def _table(rows: list[Row]) -> pa.Table:
    """The rows as a table. Their audio is copied once; building the column cell by cell copies it often."""
    audio = [row.pop("audio", None) for row in rows]
    ends = np.cumsum([0, *(len(body or b"") for body in audio)])
    valid = np.packbits(np.array([body is not None for body in audio], bool), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends), pa.py_buffer(b"".join(filter(None, audio)))]
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), buffers)
    position = SCHEMA.get_field_index("audio")
    return pa.Table.from_pylist(rows, SCHEMA).set_column(position, SCHEMA.field(position), column)


def count_repeated_audio(previews: Table, files: Sequence[str]) -> int:
    """How many of the tracks in some files have audio whose bytes another one of them has too. Memory: 8
    bytes a track."""
    parts = [np.empty(0, np.int64)]
    for batch in previews.scan(["sha256"], files):
        digests = batch.record_batch["sha256"].drop_null().to_pylist()
        parts.append(np.frombuffer(b"".join(digest[:8] for digest in digests), np.int64))
    digests = np.concatenate(parts)
    return int(digests.size - np.unique(digests).size)
