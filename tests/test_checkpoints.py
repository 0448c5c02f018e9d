"""What songray takes from Ray beyond its public API, and that no failure at any call loses a row.

A failure of the first tests says that Ray has changed it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
import ray.data
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager
from ray.data.checkpoint.checkpoint_writer import BatchBasedCheckpointWriter

from songray import checkpoints
from songray.checkpoints import CommitHandler, Delegate, checkpointed, committed, on_execution_step
from songray.errors import Conflict
from songray.leases import Lease
from songray.library import Library
from songray.storage import list_files
from songray.table import Table

CHANGED = (
    "Ray has changed what songray/checkpoints.py relies on: adapt it, then raise the cap in pyproject.toml"
)


def test_ray_has_the_parts_that_stages_use() -> None:
    options = {"id_column", "checkpoint_path", "override_filesystem", "delete_checkpoint_on_success"}
    assert {*options, "checkpoint_manager_cls"} <= set(inspect.signature(CheckpointConfig).parameters), (
        CHANGED
    )
    load = inspect.signature(CheckpointManager.load_checkpoint)
    assert list(load.parameters) == ["self", "data_file_dir", "data_file_filesystem"], CHANGED
    for name in ("checkpoint_config", "custom_execution_callback_classes", "use_datasource_v2"):
        assert hasattr(DataContext.get_current(), name), CHANGED


def test_finished_rows_are_committed_and_execution_steps_reported(library: Library, cluster: None) -> None:
    source, output = library.table("previews"), library.table("spectrograms", "default")
    source.append(pa.table({"track_key": pa.array([3, 1, 2], pa.int64())}), "x")
    steps = f"{library.root}/steps"

    def count() -> None:
        with open(steps, "a") as file:
            file.write(".")

    ray.data.DataContext.get_current().use_datasource_v2 = False
    with (
        library.lease(output.name) as lease,
        checkpointed(output.checkpoint_path, output.filesystem, lease),
        on_execution_step(count),
    ):
        rows = ray.data.read_parquet(source.files(), filesystem=source.filesystem)
        rows.write_parquet(output.path, filesystem=output.filesystem, mode="append")
    notes = list_files(library.filesystem, output.checkpoint_path)
    assert len(committed(notes)) == len(notes) > 0, CHANGED
    assert output.finished_keys().tolist() == [1, 2, 3], CHANGED
    assert output.files() and Path(steps).read_text(), CHANGED


class Died(Exception):
    """The process of a test ends here."""


class Observed(Delegate):
    """A filesystem that calls a function before and after each change that it makes, as a store without
    atomic rename makes it: a move is a copy and a deletion."""

    def __init__(self, filesystem: pa.fs.FileSystem, step: Callable[[], None]) -> None:
        super().__init__(filesystem)
        self.step = step

    def create(self, path: str, content: bytes) -> bool:
        self.step()
        created = super().create(path, content)
        self.step()
        return created

    def move(self, source: str, destination: str) -> None:
        self.copy_file(source, destination)
        self.delete_file(source)

    def copy_file(self, source: str, destination: str) -> None:
        self.step()
        super().copy_file(source, destination)
        self.step()

    def delete_file(self, path: str) -> None:
        self.step()
        super().delete_file(path)
        self.step()

    def open_output_stream(self, path: str, metadata: dict[str, str]) -> pa.NativeFile:
        self.step()
        return super().open_output_stream(path, metadata)


class Steps:
    """Counts the changes of a filesystem, and does something at one of them; by default the process dies, so
    that no later change is made either."""

    def __init__(self, number: int, action: Callable[[], None] | None = None) -> None:
        self.number, self.action, self.count = number, action, 0

    def __call__(self) -> None:
        self.count += 1
        if self.action is None and self.count >= self.number:
            raise Died
        if self.action is not None and self.count == self.number:
            self.action()


def observed(table: Table, steps: Steps) -> Table:
    filesystem = pa.fs.PyFileSystem(Observed(table.filesystem, steps))
    return Table(filesystem, table.root, table.name, table.kind)


TASKS = {"0": [1, 2], "1": [3, 4]}


def write(table: Table, lease: Lease, run: str) -> None:
    """Write the rows that a table lacks as Ray's write tasks do: note, data, commit."""
    finished = set(table.finished_keys().tolist())
    config = CheckpointConfig(
        "track_key",
        table.checkpoint_path,
        override_filesystem=pa.fs.PyFileSystem(CommitHandler(table.filesystem, lease)),
    )
    writer = BatchBasedCheckpointWriter(config)
    table.filesystem.create_dir(table.path, recursive=True)
    for task, keys in TASKS.items():
        if not finished.issuperset(keys):
            column = pa.array(keys, pa.int64())
            note = writer.write_pending_checkpoint(column, f"{run}_00000{task}")
            path = f"{table.path}/{run}_00000{task}_0.parquet"
            rows = pa.table({"track_key": column})
            pa.parquet.write_table(rows, path, filesystem=table.filesystem)
            writer.commit_checkpoint(note)


def check_consistent(table: Table) -> list[int]:
    """The keys of the rows that can be read: those that are recorded as finished, each once."""
    keys = sorted(table.read(["track_key"])["track_key"].to_pylist())
    assert keys == table.finished_keys().tolist()
    return keys


def resume(library: Library, table: Table, run: str) -> None:
    with Library(library.filesystem, library.root, take_over=True).lease(table.name) as lease:
        table.clean()
        check_consistent(table)
        write(table, lease, run)


@pytest.mark.parametrize("when", ["writing", "cleaning"])
def test_a_run_that_dies_at_any_call_loses_no_row_and_repeats_none(tmp_path: Path, when: str) -> None:
    for number in itertools.count(1):
        library = Library.open(str(tmp_path / str(number)))
        table = library.table("embeddings", "run")
        steps = Steps(number)
        dying = observed(table, steps)
        try:
            with library.lease(table.name) as lease:
                if when == "cleaning":
                    leave_behind(table, lease)
                    dying.clean()
                else:
                    write(dying, lease, "first")
        except Died:
            pass
        check_consistent(table)
        resume(library, table, "second")
        assert check_consistent(table) == [1, 2, 3, 4], f"died at {number}"
        if steps.count < number:  # there was no such call
            break
    assert number > 8


def leave_behind(table: Table, lease: Lease) -> None:
    """What one task leaves that died before its commit, and another that died right after."""
    for number in (3, 5):
        with pytest.raises(Died):
            write(observed(table, Steps(number)), lease, f"killed{number}")


def test_a_run_that_was_taken_over_at_any_call_commits_nothing_twice(tmp_path: Path) -> None:
    for number in itertools.count(1):
        library = Library.open(str(tmp_path / str(number)))
        table = library.table("embeddings", "run")
        steps = Steps(number, partial(resume, library, table, "second"))
        with library.lease(table.name) as lease:
            try:
                write(observed(table, steps), lease, "first")
            except Conflict as error:
                assert "taken over" in str(error)
        assert check_consistent(table) == [1, 2, 3, 4], f"taken over at {number}"
        with library.lease(table.name):
            table.clean()
        assert check_consistent(table) == [1, 2, 3, 4], f"taken over at {number}, then cleaned"
        if steps.count < number:
            break
    assert number > 8


def test_notes_of_tasks_that_were_given_up_are_deleted_after_a_day(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = library.table("embeddings", "run")
    with library.lease(table.name) as lease:
        with pytest.raises(Died):
            write(observed(table, Steps(2)), lease, "first")
        table.clean()
        assert len(list_files(library.filesystem, table.checkpoint_path)) == 2
        monkeypatch.setattr(checkpoints, "RETAINED_SECONDS", 0)
        table.clean()
    assert not list_files(library.filesystem, table.checkpoint_path)
