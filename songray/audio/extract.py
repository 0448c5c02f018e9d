"""Rows of previews → rows of what models take: spectrograms or waveforms, from one decoding a track."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import DEFAULT_SPECS, SPECS, is_waveform
from songray.errors import AudioError
from songray.library import Row
from songray.tables import TABLES

if TYPE_CHECKING:
    import ray

KEYS = ["track_key", "track_id"]
COLUMNS = [*KEYS, "location", "audio"]  # of a preview, which are read
BATCH_ROWS = 32
RETRYABLE = {"missing"}  # kinds of AudioError: a disk may be mounted again


@dataclass(frozen=True)
class Extraction:
    """What is computed of a track, and of which part of it."""

    specs: tuple[str, ...] = DEFAULT_SPECS  # names in SPECS, or of waveforms
    excerpt: Excerpt = field(default_factory=Excerpt)
    seconds_per_track: float = 60.0  # after which a decoder's process is ended


def decode_block(previews: pa.Table, extraction: Extraction, tally: ray.actor.ActorHandle) -> pa.Table:
    """Rows of previews → those that can be decoded, with what models take of them: see inputs.py. The others
    were decoded before, by the transform stage, so they count as failures that the next run retries."""
    import ray

    tables = []
    for rows, retryable in extract_batches(previews, extraction, tally):
        failed = [*retryable, *rows["error"].drop_null().to_pylist()]
        ray.get(tally.add.remote(0, failed))
        tables.append(decoded(rows))
    return pa.concat_tables(tables)


def decoded(rows: pa.Table) -> pa.Table:
    """The rows without an error."""
    return rows.filter(rows["error"].is_null())


def extract_batches(
    previews: pa.Table, extraction: Extraction, tally: ray.actor.ActorHandle
) -> Iterator[tuple[pa.Table, list[str]]]:
    """What extract_batch returns for each batch of the rows.

    Ray Data retries, without limit, a task whose process died. A batch that was started and did not end is
    therefore split the next time, so that it ends its task at most once.
    """
    import ray

    for start in range(0, previews.num_rows, BATCH_ROWS):
        batch = previews.slice(start, BATCH_ROWS)
        keys = batch["track_key"].to_pylist()
        extract_rows = extract_apart if ray.get(tally.start.remote(keys)) else extract_batch
        yield extract_rows(batch, extraction)
        tally.end.remote(keys)


def extract_batch(previews: pa.Table, extraction: Extraction) -> tuple[pa.Table, list[str]]:
    """Rows of previews → rows of spectrograms, with an error where one cannot be decoded; and the classes of
    the retryable failures, which get no row.

    A decoder that exceeds the time limit ends the process: nothing less ends a C library that hangs.
    """
    rows = []
    try:
        with stderr_silenced():
            for preview in previews.to_pylist():
                faulthandler.dump_traceback_later(extraction.seconds_per_track, exit=True)
                rows.append(extract_row(preview, extraction))
    finally:
        faulthandler.cancel_dump_traceback_later()
    final = [row for row in rows if row.get("error") not in RETRYABLE]
    return _table(final, extraction), [row["error"] for row in rows if row.get("error") in RETRYABLE]


def extract_row(preview: Row, extraction: Extraction) -> Row:
    """A row of previews → a row of spectrograms."""
    from songray.audio.decode import decode  # imports decoders, which --help does not need
    from songray.audio.inputs import compute_inputs

    row = {key: preview[key] for key in KEYS}
    try:
        recording = decode(
            preview["location"] if preview["audio"] is None else preview["audio"], extraction.excerpt
        )
        row["seconds"] = len(recording.samples) / recording.rate
        row["missing_seconds"] = recording.missing_seconds
        row |= compute_inputs(recording, extraction.specs)
    except AudioError as error:
        row |= {"error": error.kind, "detail": str(error)}
    return row


def _table(rows: list[Row], extraction: Extraction) -> pa.Table:
    """The rows with the declared columns, but for specs that are not computed."""
    declared = TABLES["spectrograms"].columns.items()
    columns = {name: kind for name, kind in declared if name in extraction.specs or name not in SPECS}
    columns |= {name: pa.binary() for name in extraction.specs if is_waveform(name)}
    return pa.Table.from_pylist(rows, pa.schema(columns))


def extract_apart(previews: pa.Table, extraction: Extraction) -> tuple[pa.Table, list[str]]:
    """As extract_batch, with a task for each track; a track that ends its task twice is a decoder_died."""
    import ray

    task = ray.remote(max_retries=1)(extract_batch)
    results = [task.remote(previews.slice(place, 1), extraction) for place in range(previews.num_rows)]
    outcomes = []
    for preview, result in zip(previews.select(KEYS).to_pylist(), results, strict=True):
        try:
            outcomes.append(ray.get(result))
        except ray.exceptions.WorkerCrashedError:
            detail = f"its decoder crashed, or took longer than {extraction.seconds_per_track:g} s"
            outcomes.append((_table([preview | {"error": "decoder_died", "detail": detail}], extraction), []))
    tables, retryable = zip(*outcomes, strict=True)
    return pa.concat_tables(tables), list(chain(*retryable))


@contextmanager
def stderr_silenced() -> Iterator[None]:
    """Within, nothing reaches the process's stderr, to which libmpg123 writes remarks about a file."""
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)
