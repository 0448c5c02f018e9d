"""What stages from table to table share: they process the rows that their output lacks, and sum that up."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray import checkpoints
from songray.cluster import connect
from songray.errors import StorageError, original_error, songray_error
from songray.keys import Keys, Only, are_among
from songray.library import Library
from songray.storage import compression
from songray.summary import Summary
from songray.table import Table

if TYPE_CHECKING:  # Ray is imported in functions: a stage whose output lacks nothing never loads it
    import ray
    import ray.data

MIN_ROWS_PER_FILE = 16
SECONDS_BETWEEN_REPORTS = 5.0
READ_CPUS = 0.01  # of a task that reads: it mostly waits for the tasks that process what it read
# The runtime environment of processes that hold a model: glibc keeps the memory that one batch frees for the
# next. In virtual machines, pages that the kernel maps anew took up to half of a training step.
RETAIN_MEMORY = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)
    }
}  # fmt: skip


@dataclass(frozen=True)
class Pending:
    """The rows of a source table that an output table lacks."""

    rows: int  # rows of the source, one a track
    keys: Keys  # the keys that are pending, sorted
    file: NDArray[np.int32]  # beside each key, the index in `files` of the file that holds its newest row
    files: list[str]


class Tally:
    """Actor that counts rows while a stage runs: rows that are ready to be written, and, by class, failures
    that the next run retries. It also knows the keys of the batches that are being processed."""

    def __init__(self) -> None:
        self.ready = 0
        self.retryable: Counter[str] = Counter()
        self.started: set[int] = set()

    def start(self, keys: list[int]) -> bool:
        """Whether some keys were started before and never ended: one may have killed its process."""
        restarted = not self.started.isdisjoint(keys)
        self.started.update(keys)
        return restarted

    def end(self, keys: list[int]) -> None:
        self.started.difference_update(keys)

    def add(self, ready: int, retryable: Iterable[str] = ()) -> None:
        self.ready += ready
        self.retryable.update(retryable)

    def total(self) -> tuple[int, Counter[str]]:
        return self.ready, self.retryable


class Stage:
    """One run of a stage from table to table, as a context:

        with Stage("transform", library, previews, spectrograms, rows_per_file=256) as stage:
            if stage.has_pending:
                stage.read().map_batches(…).write_parquet(spectrograms.path, **stage.write_options())
        return stage.summary

    What is between `read` and `write_parquet` makes exactly one row of the output for each row that it takes,
    or none for a row that the next run shall retry, and reports both to `tally`. Ray Data's row checkpoints
    finish rows a file at a time: a run that is killed and started again loses no finished row, and processes
    none twice.
    """

    def __init__(
        self,
        name: str,
        library: Library,
        source: Table,
        output: Table,
        rows_per_file: int,
        only: Only | None = None,
    ) -> None:
        """Where `only` is given, rows with other keys than those that it returns are left out."""
        self.name, self.library, self.source, self.output, self.only = name, library, source, output, only
        self.rows_per_file = rows_per_file  # at most; fewer where few rows are pending
        self.tally: ray.actor.ActorHandle = None
        self.new_files: list[str] = []  # that the stage wrote, once it has ended
        self.summary = Summary(name)

    def __enter__(self) -> Stage:
        self._started = time.monotonic()
        with ExitStack() as contexts:  # closed where one of these steps fails
            self._lease = contexts.enter_context(self.library.lease(self.output.name))
            self.output.clean()
            self.pending = find_pending(self.source, self.output, self.only)
            self.summary.rows = self.pending.rows
            self.summary.existing = self.pending.rows - self.pending.keys.size
            if self.has_pending:
                self._connect(contexts)
            self._contexts = contexts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._contexts:
            if error is None and self.has_pending:
                self._count()
        refused = original_error(error, OSError) if songray_error(error) is None else None
        if refused:  # Ray Data writes to the library itself
            raise StorageError(f"the library cannot be used at {self.output.path}: {refused}") from error
        self.summary.seconds = time.monotonic() - self._started

    @property
    def has_pending(self) -> bool:
        return self.pending.keys.size > 0

    def _connect(self, contexts: ExitStack) -> None:
        connect()
        import ray

        cpus: float = ray.cluster_resources().get("CPU", 1)
        files = 4 * cpus  # every CPU gets several files to make
        balanced = max(MIN_ROWS_PER_FILE, math.ceil(self.pending.keys.size / files))
        self.rows_per_file = min(self.rows_per_file, balanced)
        self.tally = ray.remote(Tally).options(num_cpus=0).remote()
        self._files_before = set(self.output.files())
        contexts.enter_context(
            checkpoints.checkpointed(self.output.checkpoint_path, self.output.filesystem, self._lease)
        )
        # Ray Data pickles what reports progress: it must not refer to this object, which holds contexts.
        progress = partial(_progress, self.name, self.pending.keys.size, self.tally, self._started)
        contexts.enter_context(report_progress(progress))

    def read(self) -> ray.data.Dataset:
        """The pending rows of the source, as Arrow blocks, one block a file."""
        import ray

        files = self.pending.files
        rows = dataset(self.source, files=files, blocks=len(files), include_paths=True, num_cpus=READ_CPUS)
        pending = ray.put(self.pending)
        return rows.map_batches(_filter_batch, fn_args=(pending,), batch_format="pyarrow", num_cpus=READ_CPUS)

    def write_options(self, row_group_rows: int | None = None, workers: int | None = None) -> dict[str, Any]:
        """Arguments of Dataset.write_parquet. Where the last step runs in tasks that claim no CPU, `workers`
        is how many run at once: each then also writes its rows, which spares a copy in the object store."""
        return {
            "filesystem": self.output.filesystem,
            "mode": "append",
            "compression": compression(self.output.schema()),
            "row_group_size": row_group_rows or self.rows_per_file,
            "concurrency": workers,
            "ray_remote_args": {} if workers is None else {"num_cpus": 0},
        }

    def _count(self) -> None:
        import ray

        files = self.new_files = [path for path in self.output.files() if path not in self._files_before]
        _, self.summary.retryable = ray.get(self.tally.total.remote())
        if "error" not in self.output.kind.columns:
            self.summary.done = self.output.read(["track_key"], files=files).num_rows
            return
        errors = self.output.read(["error"], files=files).column("error")
        self.summary.done = errors.null_count
        classes = pa.compute.value_counts(errors.drop_null()).to_pylist()
        self.summary.failed = Counter({entry["values"]: entry["counts"] for entry in classes})


def _progress(stage: str, rows: int, tally: ray.actor.ActorHandle, started: float) -> str:
    import ray

    ready, retryable = ray.get(tally.total.remote())
    processed = ready + retryable.total()
    rate = processed / (time.monotonic() - started)
    left = f", {(rows - processed) / rate:.0f} s left" if rate else ""
    return f"{stage}: {ready} of {rows} tracks, {retryable.total()} to be retried, {rate:.1f}/s{left}"


def find_pending(source: Table, output: Table, only: Only | None = None) -> Pending:
    """Compare the key indexes of the tables, so that only files that hold pending rows are opened. Memory: a
    range of keys, and 12 bytes for each row that is pending.

    Of each track only the newest revision counts, and only where the source has no error and `only`, where it
    is given, has the key.
    """
    index, finished = source.key_index(), output.finished_index()
    rows, keys, file = 0, [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for interval in index.intervals:
        usable, files = source.usable_between(index, interval)
        if only is not None:
            is_named = are_among(usable, only(interval))
            usable, files = usable[is_named], files[is_named]
        rows += usable.size
        is_pending = ~are_among(usable, finished.between(interval)["track_key"].to_numpy())
        keys.append(usable[is_pending])
        file.append(files[is_pending])
    numbers, position = np.unique(np.concatenate(file), return_inverse=True)
    paths = [index.paths[number] for number in numbers]
    return Pending(rows, np.concatenate(keys), position.astype(np.int32), paths)


def _filter_batch(rows: pa.Table, reference: ray.ObjectRef) -> pa.Table:
    """The rows of some files that are pending."""
    import ray

    pending: Pending = ray.get(reference)
    keys = rows.column("track_key").to_numpy()
    position = np.minimum(np.searchsorted(pending.keys, keys), pending.keys.size - 1)
    files = pa.compute.index_in(rows.column("path"), pa.array(pending.files)).to_numpy()
    is_pending = np.flatnonzero((pending.keys[position] == keys) & (pending.file[position] == files))
    _, last = np.unique(keys[is_pending][::-1], return_index=True)  # of rows that repeat a key
    return rows.take(pa.array(np.sort(is_pending[::-1][last]))).drop(["path"])


def dataset(
    table: Table,
    columns: list[str] | None = None,
    files: list[str] | None = None,
    blocks: int | None = None,
    include_paths: bool = False,
    num_cpus: float = 1,
) -> ray.data.Dataset:
    """The finished rows of a table as a Ray dataset. Ray Data chooses the number of blocks by that of CPUs,
    unless `blocks` says otherwise. With `include_paths`, the column `path` names the file of each row."""
    import ray.data

    # The newer reader lists files in tasks that take 6 s to end: 6.4 s against 0.6 s for one small file.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    return ray.data.read_parquet(
        table.files() if files is None else files,
        filesystem=table.filesystem,
        columns=columns,
        override_num_blocks=blocks,
        include_paths=include_paths,
        num_cpus=num_cpus,
    )


@contextmanager
def report_progress(line: Callable[[], str]) -> Iterator[None]:
    """Within, a dataset that is executed prints a line of progress on stderr every few seconds."""
    printed = time.monotonic()

    def print_line() -> None:
        nonlocal printed
        if time.monotonic() - printed > SECONDS_BETWEEN_REPORTS:
            printed = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    with checkpoints.on_execution_step(print_line):
        yield
