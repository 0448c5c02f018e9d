"""Files of a library: JSON and Parquet, written whole or not at all, and storage errors as SongrayError."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.errors import Conflict, CorruptData, StorageError

if TYPE_CHECKING:
    import obstore.store

RETRIES: Any = {"max_retries": 5}  # about 6 s in all; obstore's default is 3 minutes
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


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


def list_infos(filesystem: pa.fs.FileSystem, folder: str) -> list[pa.fs.FileInfo]:
    """The files in a folder, sorted by path; none where there is no such folder."""
    with storage_errors(folder):
        selector = pa.fs.FileSelector(folder, allow_not_found=True)
        infos = filesystem.get_file_info(selector)
    return sorted((info for info in infos if info.is_file), key=attrgetter("path"))


def list_files(filesystem: pa.fs.FileSystem, folder: str) -> list[str]:
    """Paths of the files in a folder, sorted; none where there is no such folder."""
    return [info.path for info in list_infos(filesystem, folder)]


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


def delete(filesystem: pa.fs.FileSystem, path: str) -> None:
    """Delete a file, unless there is none."""
    with storage_errors(path), suppress(FileNotFoundError):
        filesystem.delete_file(path)


def create(filesystem: pa.fs.FileSystem, path: str, content: bytes) -> bool:
    """Create a file, whole, in a folder that exists, unless there is one of that name. Of several processes
    that create it at once, one does. Returns whether the file now has this content: a request that was
    repeated because its answer got lost has succeeded."""
    with storage_errors(path):
        if isinstance(filesystem, pa.fs.PyFileSystem):  # that songray itself wraps around another one
            created: bool = filesystem.handler.create(path, content)
        elif isinstance(filesystem, pa.fs.LocalFileSystem):
            created = _link(path, content)
        else:
            created = _put(filesystem, path, content)
        if created:
            return True
        with filesystem.open_input_stream(path) as stream:
            same: bool = stream.read() == content
        return same


def _link(path: str, content: bytes) -> bool:
    """A hard link to a finished file appears at once, and only where its name is free."""
    finished = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(finished, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(finished, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        # exFAT and some network file systems: exclusive, but a crash within it leaves the file incomplete
        try:
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        if os.path.exists(finished):
            os.remove(finished)
    return True


def _put(filesystem: pa.fs.FileSystem, path: str, content: bytes) -> bool:
    """pyarrow cannot create an object on the condition that there is none; obstore can."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    bucket, _, key = path.partition("/")
    try:
        _object_store(filesystem, bucket).put(key, content, mode="create")
    except AlreadyExistsError:
        return False
    except BaseError as error:
        raise OSError(str(error).partition("\n\nDebug source")[0]) from error
    return True


def _object_store(filesystem: pa.fs.FileSystem, bucket: str) -> obstore.store.ObjectStore:
    """obstore's store for the bucket of a pyarrow filesystem, with the same options. Keys that no option
    gives are looked for in the environment and in the machine's metadata, as pyarrow does."""
    from obstore.store import GCSStore, S3Store

    _, (options, *_) = filesystem.__reduce__()
    endpoint = options.get("endpoint_override") or ""
    if endpoint and "://" not in endpoint:
        endpoint = f"{options['scheme']}://{endpoint}"
    client: Any = {"allow_http": True} if endpoint.startswith("http://") else {}
    config: Any  # options without a value are left out
    if filesystem.type_name == "s3":
        config = {
            "access_key_id": options["access_key"],
            "secret_access_key": options["secret_key"],
            "session_token": options["session_token"],
            "region": options["region"],
            "endpoint": endpoint,
            "virtual_hosted_style_request": options["force_virtual_addressing"] or not endpoint,
            "skip_signature": options["anonymous"],
        }
        config = {name: value for name, value in config.items() if value}
        return S3Store(bucket, config=config, client_options=client, retry_config=RETRIES)
    if filesystem.type_name == "gcs":
        config = {
            "bearer_token": options["access_token"],
            "skip_signature": options["anonymous"],
            "base_url": endpoint,
        }
        config = {name: value for name, value in config.items() if value}
        return GCSStore(bucket, config=config, client_options=client, retry_config=RETRIES)
    raise OSError(
        f"a library cannot be written in storage of type {filesystem.type_name}: use a folder, s3 or gs"
    )


def claim(filesystem: pa.fs.FileSystem, folder: str, settings: dict[str, Any]) -> None:
    """Store the settings that make the content of a folder. Raises Conflict where other settings are
    stored."""
    path = posixpath.join(folder, "_made_by.json")
    content = json.dumps(settings, indent=2)
    with storage_errors(folder):
        filesystem.create_dir(folder, recursive=True)
    before = read_json(filesystem, path)
    if before is None and not create(filesystem, path, content.encode()):
        before = read_json(filesystem, path)
    if before is not None and before != json.loads(content):
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
