"""Ray Data's row checkpoints: which rows of a table are finished.

Each write task of Ray Data records the ids of its rows in a file `<uuid>_<task>.pending.parquet`, writes the
data, and then renames that file, which commits it. The committed files are songray's record of what is
finished.

This is the only module that relies on parts of Ray that are not its public API. pyproject.toml caps Ray at
the version that was tested, and tests/test_checkpoints.py fails, with the reason, when one of them changes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.fs

PENDING_SUFFIX = ".pending.parquet"


def uncommitted_prefixes(checkpoints: Sequence[str]) -> tuple[str, ...]:
    """Prefixes of the names of data files that are being written, or that a killed run left behind."""
    names = (posixpath.basename(path) for path in checkpoints)
    return tuple(name.removesuffix(PENDING_SUFFIX) for name in names if name.endswith(PENDING_SUFFIX))


def committed(checkpoints: Sequence[str]) -> list[str]:
    """The checkpoint files whose rows are finished."""
    return [path for path in checkpoints if not path.endswith(PENDING_SUFFIX)]


@contextmanager
def checkpointed(path: str, filesystem: pyarrow.fs.FileSystem) -> Iterator[None]:
    """Within, datasets that are read and written record the `track_key` of each row that they finished."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="track_key",
        checkpoint_path=path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_cleaning_manager(),
    )
    try:
        yield
    finally:
        context.checkpoint_config = None


def _cleaning_manager() -> type[Any]:
    """A CheckpointManager that deletes what a killed run left half-written, and loads nothing: Stage.read
    selects pending rows from the same committed keys, without a copy of all keys in every filter actor."""
    from ray.data.checkpoint.checkpoint_filter import CheckpointManager

    class CleaningManager(CheckpointManager):  # type: ignore[misc]
        def load_checkpoint(self, data_file_dir=None, data_file_filesystem=None):  # type: ignore[no-untyped-def]
            self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
            return None, 0

    return CleaningManager


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
