"""Files of a library: JSON and Parquet, written whole or not at all, and storage errors as SongrayError."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.errors import Conflict, CorruptData, StorageError


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Within, errors of the storage are raised as StorageError, errors of a file's content as CorruptData,
    each with the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"the library cannot be used at {path}: {error}") from error
    except (pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptData(f"a file at {path} cannot be read: {error}") from error


def list_files(filesystem: pa.fs.FileSystem, folder: str) -> list[str]:
    """Paths of the files in a folder, sorted; none where there is no such folder."""
    with storage_errors(folder):
        selector = pa.fs.FileSelector(folder, allow_not_found=True)
        return sorted(info.path for info in filesystem.get_file_info(selector) if info.is_file)


def read_json(filesystem: pa.fs.FileSystem, path: str) -> Any:
    """The parsed file, or None where there is no such file."""
    with storage_errors(path):
        if filesystem.get_file_info(path).type == pa.fs.FileType.NotFound:
            return None
        with filesystem.open_input_stream(path) as stream:
            return json.loads(stream.read())


def write_json(filesystem: pa.fs.FileSystem, path: str, content: Any) -> None:
    """Write the file whole or not at all."""
    with storage_errors(path):
        filesystem.create_dir(posixpath.dirname(path), recursive=True)
        with filesystem.open_output_stream(f"{path}.part") as stream:
            stream.write(json.dumps(content, indent=2).encode())
        filesystem.move(f"{path}.part", path)


def claim(filesystem: pa.fs.FileSystem, folder: str, settings: dict[str, Any]) -> None:
    """Store the settings that make the content of a folder. Raises Conflict where other settings are
    stored."""
    path = posixpath.join(folder, "_made_by.json")
    before = read_json(filesystem, path)
    if before is None:
        write_json(filesystem, path, settings)
    elif before != json.loads(json.dumps(settings)):
        raise Conflict(
            f"{folder} was made with {json.dumps(before)}, and this would add what is made with "
            f"{json.dumps(settings)}: choose another name for the output, or the same settings"
        )


def write_parquet(
    filesystem: pa.fs.FileSystem, path: str, rows: pa.Table, row_group_rows: int | None = None
) -> None:
    """Write the file whole or not at all."""
    codec = compression(rows.schema)
    with storage_errors(path):
        pa.parquet.write_table(rows, f"{path}.part", row_group_rows, filesystem=filesystem, compression=codec)
        filesystem.move(f"{path}.part", path)


def compression(schema: pa.Schema) -> str | dict[str, str]:
    """Codecs for Parquet. Audio, the only large_binary column, is compressed already."""
    if not any(pa.types.is_large_binary(column.type) for column in schema):
        return "zstd"
    return {column.name: "none" if pa.types.is_large_binary(column.type) else "zstd" for column in schema}
