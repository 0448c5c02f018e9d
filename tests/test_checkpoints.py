"""What songray takes from Ray beyond its public API. A failure here says that Ray has changed it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pyarrow as pa
import ray.data
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager

from songray.checkpoints import checkpointed, committed, on_execution_step
from songray.library import Library
from songray.storage import list_files

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
    clean = inspect.signature(CheckpointManager._clean_pending_checkpoints)
    assert list(clean.parameters) == ["self", "data_file_dir", "data_file_filesystem"], CHANGED
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
    with checkpointed(output.checkpoint_path, output.filesystem), on_execution_step(count):
        rows = ray.data.read_parquet(source.files(), filesystem=source.filesystem)
        rows.write_parquet(output.path, filesystem=output.filesystem, mode="append")
    checkpoints = list_files(library.filesystem, output.checkpoint_path)
    assert len(committed(checkpoints)) == len(checkpoints) > 0, CHANGED
    assert output.finished_keys().tolist() == [1, 2, 3], CHANGED
    assert output.files() and Path(steps).read_text(), CHANGED
