"""Reads previews, writes spectrograms: one decoding a track, one column a spec."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import DEFAULT_SPECS, SPECS, compute, quantise
from songray.errors import AudioError, InvalidOption
from songray.library import TABLES, Library, Row
from songray.stages import Stage
from songray.storage import read_json
from songray.summary import Summary

if TYPE_CHECKING:
    import ray

KEYS = ["track_key", "track_id"]
BATCH_ROWS = 32
RETRYABLE = {"missing"}  # kinds of AudioError: a disk may be mounted again


@dataclass(frozen=True)
class TransformConfig:
    set: str = "default"
    """Name of the set of spectrograms."""
    specs: tuple[str, ...] = ()
    """Spectrograms to compute of each track, from one decoding: mel128, linear257, mel128-8k, mel96,
    mfcc20-8k, chroma12, mel96-16k. By default those that the set has; for a new set mel128 and mel96-16k."""
    excerpt_seconds: float | None = None
    """The longest excerpt of a track that is decoded, in seconds. By default that of the set; for a new set
    that of the set default, and else 30."""
    excerpt_at: str | None = None
    """Position of the excerpt: middle, start, or spread:n for n pieces that are joined. By default that of
    the set; for a new set that of the set default, and else spread:5."""
    seconds_per_track: float = 60.0
    """Time limit for decoding one track, in seconds; its process is ended beyond it."""
    rows_per_file: int = 256
    """The most tracks of one file, which are finished together; fewer where few are pending."""
    max_failed_share: float = 0.5
    """Exit with an error where more than this share of the tracks of a run fails."""

    def __post_init__(self) -> None:
        if not set(self.specs) <= set(SPECS):
            raise InvalidOption(f"--specs {' '.join(self.specs)}: choose from {', '.join(SPECS)}")
        if self.seconds_per_track <= 0:
            raise InvalidOption(f"seconds_per_track is {self.seconds_per_track}: must be above 0")
        if self.rows_per_file < 1:
            raise InvalidOption(f"rows_per_file is {self.rows_per_file}: must be at least 1")
        self.within(Excerpt())  # validates both of its options

    def within(self, excerpt: Excerpt) -> Excerpt:
        """An excerpt, with what these options say about it in place of its own."""
        seconds = excerpt.seconds if self.excerpt_seconds is None else self.excerpt_seconds
        return Excerpt(seconds, excerpt.at if self.excerpt_at is None else self.excerpt_at)

    @property
    def excerpt(self) -> Excerpt:
        return self.within(Excerpt())

    @property
    def columns(self) -> tuple[str, ...]:
        return self.specs or DEFAULT_SPECS


def transform(library: Library, config: TransformConfig) -> Summary:
    """Compute the spectrograms of the previews that have none yet."""
    previews, spectrograms = library.table("previews"), library.table("spectrograms", config.set)
    excerpt = config.within(excerpt_of(library, config.set))
    config = replace(
        config,
        specs=config.specs or specs_of(library, config.set),
        excerpt_seconds=excerpt.seconds,
        excerpt_at=excerpt.at,
    )
    specs = {name: SPECS[name].settings for name in config.specs}
    spectrograms.claim({"specs": specs, "excerpt": asdict(excerpt)})
    with Stage("transform", library, previews, spectrograms, config.rows_per_file) as stage:
        if stage.has_pending:
            (
                stage.read()
                # Ray Data fuses these two steps in this order, and slices what was read without a copy.
                .map_batches(
                    transform_block,
                    fn_args=(config, stage.tally),
                    batch_size=stage.rows_per_file,
                    batch_format="pyarrow",
                )
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .write_parquet(spectrograms.path, **stage.write_options())
            )
    stage.summary.check(config.max_failed_share)
    return stage.summary


def specs_of(library: Library, set_name: str) -> tuple[str, ...]:
    """The spectrograms of a set; where it does not exist yet, those that it will have by default."""
    return tuple(made_by(library, set_name).get("specs", DEFAULT_SPECS))


def excerpt_of(library: Library, set_name: str) -> Excerpt:
    """The excerpt of the tracks of a set; where it does not exist yet, the one that it will have by default:
    that of the set `default`, since only models that embed the same seconds can be joined."""
    made = made_by(library, set_name) or made_by(library, TransformConfig.set)
    return Excerpt(**made.get("excerpt", {}))


def made_by(library: Library, set_name: str) -> dict[str, Any]:
    """The specs and the excerpt of a set; empty where it does not exist yet."""
    path = f"{library.table('spectrograms', set_name).path}/_made_by.json"
    return read_json(library.filesystem, path) or {}


def transform_block(previews: pa.Table, config: TransformConfig, tally: ray.actor.ActorHandle) -> pa.Table:
    """Rows of previews → rows of spectrograms, in batches that are reported to the tally.

    Ray Data retries, without limit, a task whose process died. A batch that was started and did not end is
    therefore split the next time, so that it ends its task at most once.
    """
    import ray

    tables = []
    for start in range(0, previews.num_rows, BATCH_ROWS):
        batch = previews.slice(start, BATCH_ROWS)
        keys = batch["track_key"].to_pylist()
        transform_rows = transform_apart if ray.get(tally.start.remote(keys)) else transform_batch
        rows, retryable = transform_rows(batch, config)
        tally.end.remote(keys)
        ray.get(tally.add.remote(rows.num_rows, retryable))  # counted before the stage ends
        tables.append(rows)
    return pa.concat_tables(tables)


def transform_batch(previews: pa.Table, config: TransformConfig) -> tuple[pa.Table, list[str]]:
    """Rows of previews → rows of spectrograms, with an error where one cannot be decoded; and the classes of
    the retryable failures, which get no row.

    A decoder that exceeds the time limit ends the process: nothing less ends a C library that hangs.
    """
    rows = []
    try:
        with _stderr_silenced():
            for preview in previews.to_pylist():
                faulthandler.dump_traceback_later(config.seconds_per_track, exit=True)
                rows.append(transform_row(preview, config))
    finally:
        faulthandler.cancel_dump_traceback_later()
    final = [row for row in rows if row.get("error") not in RETRYABLE]
    return _table(final, config), [row["error"] for row in rows if row.get("error") in RETRYABLE]


def transform_row(preview: Row, config: TransformConfig) -> Row:
    """A row of previews → a row of spectrograms."""
    from songray.audio.decode import decode  # imports decoders, which --help does not need

    row = {key: preview[key] for key in KEYS}
    try:
        recording = decode(
            preview["location"] if preview["audio"] is None else preview["audio"], config.excerpt
        )
        row["seconds"] = len(recording.samples) / recording.rate
        row["missing_seconds"] = recording.missing_seconds
        for rate in {SPECS[name].rate for name in config.columns}:
            names = [name for name in config.columns if SPECS[name].rate == rate]
            planes = compute(recording.resampled(rate), names)
            row |= {name: quantise(plane, SPECS[name]).tobytes() for name, plane in planes.items()}
    except AudioError as error:
        row |= {"error": error.kind, "detail": str(error)}
    return row


def _table(rows: list[Row], config: TransformConfig) -> pa.Table:
    """The rows with the declared columns, but for specs that are not computed."""
    declared = TABLES["spectrograms"].columns.items()
    columns = {name: kind for name, kind in declared if name in config.columns or name not in SPECS}
    return pa.Table.from_pylist(rows, pa.schema(columns))


def transform_apart(previews: pa.Table, config: TransformConfig) -> tuple[pa.Table, list[str]]:
    """As transform_batch, with a task for each track; a track that ends its task twice is a decoder_died."""
    import ray

    task = ray.remote(max_retries=1)(transform_batch)
    results = [task.remote(previews.slice(place, 1), config) for place in range(previews.num_rows)]
    outcomes = []
    for preview, result in zip(previews.select(KEYS).to_pylist(), results, strict=True):
        try:
            outcomes.append(ray.get(result))
        except ray.exceptions.WorkerCrashedError:
            detail = f"its decoder crashed, or took longer than {config.seconds_per_track:g} s"
            outcomes.append((_table([preview | {"error": "decoder_died", "detail": detail}], config), []))
    tables, retryable = zip(*outcomes, strict=True)
    return pa.concat_tables(tables), list(chain(*retryable))


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Within, nothing reaches the process's stderr, to which libmpg123 writes remarks about a file."""
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)
