"""Ray Data's row checkpoints: which rows of a table are finished.

Each write task of Ray Data records the ids of its rows in a note `<uuid>_<task>.pending.parquet`, writes the
data, and then moves that note to `<uuid>_<task>.parquet`, which commits it. The committed notes are songray's
record of what is finished.

What Ray's own protocol lacks, the filesystem of the notes adds: a store without atomic rename moves by a copy
and a deletion, and a run that was thought dead may commit while the next one deletes what it left behind. So
a commit is the exclusive creation of the committed note, and so is its opposite: whoever deletes the data of
a dead task first creates the task's committed note without a row, so that the task can never commit.

| pending note | committed note | the task's data                                  |
| ------------ | -------------- | ------------------------------------------------ |
| yes          | no             | is being written, or was left behind             |
| yes, no      | with rows      | is finished                                      |
| yes          | without a row  | was given up: not read, and deleted by `clean`   |

This is the only module that relies on parts of Ray that are not its public API. pyproject.toml caps Ray at
the version that was tested, and tests/test_checkpoints.py fails, with the reason, when one of them changes.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.errors import Conflict
from songray.leases import Lease
from songray.storage import create, delete, list_files, storage_errors

SUFFIX, PENDING_SUFFIX = ".parquet", ".pending.parquet"
RETAINED_SECONDS = 24 * 3600.0  # for which a task that was given up might still write its data


def committed(notes: Sequence[str]) -> list[str]:
    """The notes whose rows are finished."""
    return [path for path in notes if path.endswith(SUFFIX) and not path.endswith(PENDING_SUFFIX)]


def pending(notes: Sequence[str]) -> list[str]:
    """The notes of tasks that write, or that died, before or after they committed."""
    return [path for path in notes if path.endswith(PENDING_SUFFIX)]


def unfinished_prefixes(filesystem: pa.fs.FileSystem, notes: Sequence[str]) -> tuple[str, ...]:
    """Prefixes of the names of data files that are being written, or that a killed run left behind."""
    finished = set(committed(notes))
    return tuple(
        _prefix(note)
        for note in pending(notes)
        if _committed_note(note) not in finished or _has_no_row(filesystem, _committed_note(note))
    )


def clean(filesystem: pa.fs.FileSystem, folder: str, data_folder: str) -> None:
    """Delete the data of tasks that did not commit, and the pending notes of those that did.

    The caller holds the lease of the table. It may be killed at any point, and a task that it gives up may be
    running: the task either commits before, and its data stays, or can never commit."""
    given_up = []
    for note in pending(list_files(filesystem, folder)):
        path = _committed_note(note)
        if create(filesystem, path, _without_rows()) or _has_no_row(filesystem, path):
            given_up.append(note)
        else:
            delete(filesystem, note)
    if not given_up:
        return
    prefixes = tuple(map(_prefix, given_up))
    for path in list_files(filesystem, data_folder):
        if posixpath.basename(path).startswith(prefixes):
            delete(filesystem, path)
    for note in given_up:
        _forget(filesystem, note)


def _forget(filesystem: pa.fs.FileSystem, note: str) -> None:
    """Delete the notes of a task that was given up so long ago that it cannot be running."""
    with storage_errors(note):
        created = filesystem.get_file_info(note).mtime
    if created is not None and time.time() - created.timestamp() > RETAINED_SECONDS:
        delete(filesystem, _committed_note(note))
        delete(filesystem, note)


def _prefix(note: str) -> str:
    """The prefix of the names of a task's data files."""
    return posixpath.basename(note).removesuffix(PENDING_SUFFIX)


def _committed_note(note: str) -> str:
    return note.removesuffix(PENDING_SUFFIX) + SUFFIX


def _without_rows() -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.schema({"track_key": pa.int64()}).empty_table(), sink)
    return bytes(sink.getvalue())


def _has_no_row(filesystem: pa.fs.FileSystem, note: str) -> bool:
    with storage_errors(note):
        rows: int = pa.parquet.read_metadata(note, filesystem=filesystem).num_rows
    return rows == 0


class Delegate(pa.fs.FileSystemHandler):  # type: ignore[misc]
    """A filesystem that passes every request on to another one."""

    def __init__(self, filesystem: pa.fs.FileSystem) -> None:
        self.filesystem = filesystem

    def create(self, path: str, content: bytes) -> bool:
        return create(self.filesystem, path, content)

    def get_type_name(self) -> str:
        return str(self.filesystem.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pa.fs.FileInfo]:
        return list(self.filesystem.get_file_info(paths))

    def get_file_info_selector(self, selector: pa.fs.FileSelector) -> list[pa.fs.FileInfo]:
        return list(self.filesystem.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self.filesystem.create_dir(path, recursive=recursive)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.filesystem.open_input_stream(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self.filesystem.open_input_file(path)

    def open_output_stream(self, path: str, metadata: dict[str, str]) -> pa.NativeFile:
        return self.filesystem.open_output_stream(path, metadata=metadata or None)

    def open_append_stream(self, path: str, metadata: dict[str, str]) -> pa.NativeFile:
        return self.filesystem.open_append_stream(path, metadata=metadata or None)

    def copy_file(self, source: str, destination: str) -> None:
        self.filesystem.copy_file(source, destination)

    def move(self, source: str, destination: str) -> None:
        self.filesystem.move(source, destination)

    def delete_file(self, path: str) -> None:
        self.filesystem.delete_file(path)

    def delete_dir(self, path: str) -> None:
        self.filesystem.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.filesystem.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("the contents of a whole filesystem are never deleted")


class CommitHandler(Delegate):
    """The filesystem that Ray Data keeps its notes in: it commits exclusively, and under the lease."""

    def __init__(self, filesystem: pa.fs.FileSystem, lease: Lease) -> None:
        super().__init__(filesystem)
        self.lease = lease

    def move(self, source: str, destination: str) -> None:
        """Commit. Raises Conflict where another process has taken over."""
        self.lease.check()
        with self.filesystem.open_input_stream(source) as stream:
            content = stream.read()
        create(self.filesystem, destination, content)
        self.delete_file(source)

    def delete_file(self, path: str) -> None:
        """Delete a pending note after its commit. Raises Conflict where the task was given up before: its
        data must stay hidden."""
        if _has_no_row(self.filesystem, _committed_note(path)):
            raise Conflict(f"{path} was given up by a process that has taken over, so it is not committed")
        delete(self.filesystem, path)


@contextmanager
def checkpointed(path: str, filesystem: pa.fs.FileSystem, lease: Lease) -> Iterator[None]:
    """Within, datasets that are read and written record the `track_key` of each row that they finished."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="track_key",
        checkpoint_path=path,
        override_filesystem=pa.fs.PyFileSystem(CommitHandler(filesystem, lease)),
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_empty_manager(),
    )
    try:
        yield
    finally:
        context.checkpoint_config = None


def _empty_manager() -> type[Any]:
    """A CheckpointManager that cleans and loads nothing: `clean` ran before, and Stage.read selects pending
    rows from the same committed keys, without a copy of all keys in every filter actor."""
    from ray.data.checkpoint.checkpoint_filter import CheckpointManager

    class EmptyManager(CheckpointManager):  # type: ignore[misc]
        def load_checkpoint(self, data_file_dir=None, data_file_filesystem=None):  # type: ignore[no-untyped-def]
            return None, 0

    return EmptyManager


@contextmanager
def on_execution_step(function: Callable[[], None]) -> Iterator[None]:
    """Within, Ray Data calls the function often while a dataset is executed."""
    import ray.data
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Callback(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: object) -> None:
            function()

    context = ray.data.DataContext.get_current()
    context.custom_execution_callback_classes = [Callback]
    try:
        yield
    finally:
        context.custom_execution_callback_classes = []
