"""What stages from table to table share: they do what their output lacks, and sum up what they did."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute
import ray
import ray.data
from numpy.typing import NDArray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager

from songray.library import Keys, Table, compression, last_of_equal, newest_revisions

MIN_ROWS_PER_FILE = 16
SECONDS_BETWEEN_LINES = 5.0
# Of processes that hold a model: what one batch frees, the next asks for again, and pages that the kernel had
# to give anew took up to half of a step's time in virtual machines. These are glibc's.
RETAIN_MEMORY = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)
    }
}  # fmt: skip
READING_CPUS = 0.01  # of a task that reads: most of its time it waits for those that work on what it read


@dataclass
class Summary:
    """What a stage did: rows in = before + done + failed + to try again."""

    stage: str
    rows: int = 0
    before: int = 0
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        worked = self.done + self.failed.total() + self.again.total()
        parts = [f"{self.before} done before", f"{self.done} done now"]
        parts.append(f"{self.failed.total()} failed{_classes(self.failed)}")
        if self.again:
            parts.append(f"{self.again.total()} to try again{_classes(self.again)}")
        rate = f", {worked / self.seconds:.1f}/s" if worked and self.seconds else ""
        text = f"{self.stage}: {self.rows} tracks = {' + '.join(parts)} ({self.seconds:.1f} s{rate})"
        return "\n  ".join([text, *self.remarks])

    def check(self, max_failed_share: float) -> None:
        """Raise RuntimeError where more of this run's rows failed than the stage may bear."""
        worked = self.done + self.failed.total() + self.again.total()
        bad = worked - self.done
        if worked and bad / worked > max_failed_share:
            raise RuntimeError(
                f"{bad} of {worked} tracks failed, more than the share of {max_failed_share:g} that "
                f"--max-failed-share allows:\n{self}"
            )


def _classes(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{name} {count}' for name, count in counts.most_common())})" if counts else ""


@dataclass(frozen=True)
class Pending:
    """The rows of a source table that an output table lacks."""

    rows: int  # of the source, one a track
    keys: Keys  # of those that are lacking, sorted
    file: NDArray[np.int32]  # beside each key, the file whose row counts: rows may supersede others
    files: list[str]  # of the source, that hold them


class Tally:
    """Actor that counts rows while a stage runs: those that are ready to be written, and, by class, those
    that are left for its next run. It also knows the keys that are being worked on."""

    def __init__(self) -> None:
        self.ready = 0
        self.again: Counter[str] = Counter()
        self.begun: set[int] = set()

    def begin(self, keys: list[int]) -> bool:
        """Whether some were begun before and never ended: one may have killed the process it was in."""
        before = not self.begun.isdisjoint(keys)
        self.begun.update(keys)
        return before

    def end(self, keys: list[int]) -> None:
        self.begun.difference_update(keys)

    def add(self, ready: int, again: Iterable[str] = ()) -> None:
        self.ready += ready
        self.again.update(again)

    def total(self) -> tuple[int, Counter[str]]:
        return self.ready, self.again


def fill(
    stage: str,
    source: Table,
    output: Table,
    plan: Callable[[ray.data.Dataset, ray.actor.ActorHandle, int], ray.data.Dataset],
    rows_per_file: int,
    row_group_rows: int | None = None,
    workers: int | None = None,
) -> Summary:
    """Write to `output` what `plan` makes of the rows of `source` that it lacks.

    `plan` maps a dataset of Arrow blocks to one of rows in the output's schema: exactly one row
    for each row that it takes, or none for one that the next run shall try again; it tells the Tally of
    both. It ends in blocks of the given number of rows, each of which is written as a file. Where it ends
    in tasks that claim no CPU, `workers` is how many run at once: each then also writes what it made, which
    spares a copy by way of the object store.

    Rows are finished a file at a time, by Ray Data's row checkpoints: killed at any moment and
    called again, none is lost, and none that was finished is done again.
    """
    started = time.monotonic()
    lacking = find_pending(source, output)
    summary = Summary(stage, rows=lacking.rows, before=lacking.rows - lacking.keys.size)
    if lacking.keys.size:
        rows_per_file = min(rows_per_file, _grain(lacking.keys.size))
        tally = ray.remote(Tally).options(num_cpus=0).remote()
        files_before = set(output.files())
        with (
            _checkpoints(output),
            report_progress(partial(_progress, stage, lacking.keys.size, tally, started)),
        ):
            rows = dataset(
                source,
                files=lacking.files,
                blocks=len(lacking.files),
                include_paths=True,
                num_cpus=READING_CPUS,
            )
            rows = rows.map_batches(
                _keep, fn_args=(ray.put(lacking),), batch_format="pyarrow", num_cpus=READING_CPUS
            )
            plan(rows, tally, rows_per_file).write_parquet(
                output.path,
                filesystem=output.filesystem,
                mode="append",
                compression=compression(output.schema()),
                row_group_size=row_group_rows or rows_per_file,
                concurrency=workers,
                ray_remote_args={} if workers is None else {"num_cpus": 0},
            )
        files = [path for path in output.files() if path not in files_before]
        _count(summary, output, files)
        _, summary.again = ray.get(tally.total.remote())
    summary.seconds = time.monotonic() - started
    return summary


def dataset(
    table: Table,
    columns: list[str] | None = None,
    files: list[str] | None = None,
    blocks: int | None = None,
    include_paths: bool = False,
    num_cpus: float = 1,
) -> ray.data.Dataset:
    """The finished rows of a table, as Ray Data streams them; by default it chooses the blocks by the
    number of CPUs. With `include_paths`, the column `path` names the file of each row."""
    # The newer reader lists files in tasks that take 6 s to end: 6.4 s against 0.6 s for one small file.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    paths = table.files() if files is None else files
    return ray.data.read_parquet(
        paths,
        filesystem=table.filesystem,
        columns=columns,
        override_num_blocks=blocks,
        include_paths=include_paths,
        num_cpus=num_cpus,
    )


def _grain(rows: int) -> int:
    """Rows a file that give every CPU several files to make, and at least MIN_ROWS_PER_FILE."""
    cpus: float = ray.cluster_resources().get("CPU", 1)
    return max(MIN_ROWS_PER_FILE, math.ceil(rows / (4 * cpus)))


def find_pending(source: Table, output: Table) -> Pending:
    """Compare keys alone, so that only files that hold work need be opened (8 bytes a track).

    Of each track only the newest revision counts, and only where the source has no error.
    """
    keys, order, fit, fragment, files = _read_keys(source)
    newest = newest_revisions(np.unique(keys))
    position = np.lexsort((order, keys))  # the last of equal keys is the one that counts
    last = position[last_of_equal(keys[position])]
    rows = last[np.isin(keys[last], newest) & fit[last]]
    rows_lacking = rows[~np.isin(keys[rows], output.finished_keys())]
    by_key = rows_lacking[np.argsort(keys[rows_lacking])]
    holding, file = np.unique(fragment[by_key], return_inverse=True)
    return Pending(rows.size, keys[by_key], file.astype(np.int32), [files[number] for number in holding])


def _read_keys(source: Table) -> tuple[Keys, Keys, np.ndarray, np.ndarray, list[str]]:
    """Of each row: its key, its order among equal keys, whether it has no error, and its file."""
    files = source.files()
    number = {path: position for position, path in enumerate(files)}
    names = ["track_key", *(name for name in (source.kind.newest, "error") if name in source.kind.columns)]
    tables, fragments = [source.schema().empty_table().select(names)], [np.empty(0, np.int64)]
    for batch in source.scan(names, files):  # files are read ahead in parallel: there may be many
        tables.append(pa.Table.from_batches([batch.record_batch]))
        fragments.append(np.full(batch.record_batch.num_rows, number[batch.fragment.path]))
    table = pa.concat_tables(tables)
    keys = table["track_key"].to_numpy()
    order = table[source.kind.newest].to_numpy() if source.kind.newest else np.zeros_like(keys)
    fit = table["error"].is_null().to_numpy() if "error" in names else np.ones(keys.size, bool)
    return keys, order, fit, np.concatenate(fragments), files


def _keep(rows: pa.Table, lacking_reference: ray.ObjectRef) -> pa.Table:
    """Of the rows of some files, those that are lacking."""
    lacking: Pending = ray.get(lacking_reference)
    keys = rows.column("track_key").to_numpy()
    position = np.minimum(np.searchsorted(lacking.keys, keys), lacking.keys.size - 1)
    files = pa.compute.index_in(rows.column("path"), pa.array(lacking.files)).to_numpy()
    keep = (lacking.keys[position] == keys) & (lacking.file[position] == files)
    return rows.filter(pa.array(keep)).drop(["path"])


class _CleanOnly(CheckpointManager):  # type: ignore[misc]
    """Deletes what a killed run left half-written, and loads nothing: `_keep` has chosen the rows
    already, from the same committed keys, without a copy of them all in every filter actor."""

    def load_checkpoint(self, data_file_dir=None, data_file_filesystem=None):  # type: ignore[no-untyped-def]
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0


@contextmanager
def _checkpoints(output: Table) -> Iterator[None]:
    """Within, datasets that are read and written record the keys that they finished."""
    context = ray.data.DataContext.get_current()
    config = CheckpointConfig(
        id_column="track_key",
        checkpoint_path=output.checkpoint_path,
        override_filesystem=output.filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_CleanOnly,
    )
    context.checkpoint_config = config
    try:
        yield
    finally:
        context.checkpoint_config = None


@contextmanager
def report_progress(progress: Callable[[], str]) -> Iterator[None]:
    """Within, a dataset that runs tells every few seconds, on stderr, where it is."""
    told = time.monotonic()

    class Progress(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: object) -> None:
            nonlocal told
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                print(progress(), file=sys.stderr, flush=True)

    context = ray.data.DataContext.get_current()
    context.custom_execution_callback_classes = [Progress]
    try:
        yield
    finally:
        context.custom_execution_callback_classes = []


def _progress(stage: str, rows: int, tally: ray.actor.ActorHandle, started: float) -> str:
    ready, again = ray.get(tally.total.remote())
    rate = (ready + again.total()) / (time.monotonic() - started)
    left = f", {(rows - ready - again.total()) / rate:.0f} s left" if rate else ""
    return f"{stage}: {ready} of {rows} tracks, {again.total()} to try again, {rate:.1f}/s{left}"


def _count(summary: Summary, output: Table, files: list[str]) -> None:
    if "error" not in output.kind.columns:
        summary.done = output.read(["track_key"], files=files).num_rows
        return
    errors = output.read(["error"], files=files).column("error")
    summary.done = errors.null_count
    classes = pa.compute.value_counts(errors.drop_null()).to_pylist()
    summary.failed = Counter({entry["values"]: entry["counts"] for entry in classes})
