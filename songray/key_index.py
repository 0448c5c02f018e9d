"""The key index of a folder of Parquet files: which file has each `track_key`, by ranges of keys.

It is derived. Whoever reads it brings it up to date first: files that are new, changed or gone are found by
their names, sizes and times, and only new and changed ones are opened. Where it is missing or damaged, it is
built anew. Several processes may do so at once: a manifest names all files of one state, and none is changed.

    manifest.json     what belongs to the index, with sizes
    files-….parquet   the files that are indexed, each with its number
    range-….parquet   the rows of one range of keys, sorted: the key, the columns that are indexed, and the
                      number of the row's file
    new-….parquet     the same of files that appeared since the ranges were written
"""

from __future__ import annotations

import json
import posixpath
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.fs
import pyarrow.parquet
from numpy.typing import NDArray

from songray.cluster import connect
from songray.errors import CorruptData, StorageError
from songray.keys import KEY_BITS, Interval
from songray.storage import delete, list_files, list_infos, read_json, storage_errors, write_parquet

FORMAT = 1
RANGE_ROWS = 4_000_000  # about, of a range: what one process holds at a time
ROW_GROUP_ROWS = 1 << 16
MAX_NEW_PARTS = 16  # then they are merged into the ranges
MERGED_SHARE = 0.25  # as they are where they have this share of the rows of the ranges
CHUNK_FILES = 1024  # that are indexed together, by one task of Ray where there are more
RETAINED_SECONDS = 3600.0  # for which another process may read files of an earlier state
MANIFEST = "manifest.json"
FILES = pa.schema({"name": pa.string(), "size": pa.int64(), "mtime": pa.int64(), "number": pa.int32()})

# Of some files: `track_key`, the columns that are indexed, and `file`, the index of each row's file in them.
ReadRows = Callable[[Sequence[str]], pa.Table]


@dataclass(frozen=True)
class Part:
    """Sorted rows of the index: a file, or a table where the library cannot be written."""

    rows: int
    name: str = ""
    size: int = 0
    table: pa.Table | None = None


@dataclass(frozen=True)
class KeyIndex:
    """One state of the index of a folder."""

    filesystem: pa.fs.FileSystem
    path: str  # of its own files
    folder: str  # of the files that are indexed
    schema: pa.Schema  # track_key, the columns that are indexed, file
    files: pa.Table = field(default_factory=FILES.empty_table)
    numbers: int = 0  # that were given to files, also to those that are gone
    ranges: tuple[Part, ...] = ()  # 2^n in ascending order of keys; or none
    new: tuple[Part, ...] = ()
    unused: dict[str, float] = field(default_factory=dict)  # since when its own files of earlier states are

    @property
    def rows(self) -> int:
        """The number of rows, with those of files that are gone."""
        return sum(part.rows for part in (*self.ranges, *self.new))

    @property
    def intervals(self) -> list[Interval]:
        """Intervals of keys whose rows fit in memory, in ascending order."""
        return _intervals(max(1, len(self.ranges)))

    @cached_property
    def paths(self) -> list[str]:
        """The path of each file by its number, "" for those that are gone."""
        paths = [""] * self.numbers
        names, numbers = (self.files[column].to_pylist() for column in ("name", "number"))
        for name, number in zip(names, numbers, strict=True):
            paths[number] = posixpath.join(self.folder, name)
        return paths

    def between(self, interval: Interval, columns: Iterable[str] = ()) -> pa.Table:
        """`track_key` and columns of all rows in an interval of keys, sorted by key and the file's path. The
        column `file` has the number of each row's file. Raises CorruptData or StorageError where the index
        cannot be read."""
        overlapping = [
            part
            for part, (low, high) in zip(self.ranges, self.intervals, strict=False)
            if low < interval[1] and high > interval[0]
        ]
        parts, has_gone = [*overlapping, *self.new], self.files.num_rows < self.numbers
        needed = ["file"] if has_gone or len(parts) > 1 else []
        schema = pa.schema(
            [self.schema.field(name) for name in dict.fromkeys(("track_key", *columns, *needed))]
        )
        rows = pa.concat_tables(
            [schema.empty_table(), *(self._read(part, interval, schema.names) for part in parts)]
        )
        if has_gone:
            rows = rows.filter(pa.array(self.order[rows["file"].to_numpy()] >= 0))
        if len(parts) > 1:
            order = np.lexsort([self.order[rows["file"].to_numpy()], rows["track_key"].to_numpy()])
            rows = rows.take(pa.array(order))
        return rows

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """The place of each file by its number, in the order of their names; -1 of those that are gone."""
        order = np.full(self.numbers, -1, np.int32)
        sorted_numbers = self.files.sort_by("name")["number"].to_numpy()
        order[sorted_numbers] = np.arange(len(sorted_numbers))
        return order

    def _read(self, part: Part, interval: Interval, columns: list[str]) -> pa.Table:
        key = pa.compute.field("track_key")
        is_within = (key >= interval[0]) & (key <= interval[1] - 1)
        if part.table is not None:
            return part.table.filter(is_within).select(columns)
        path = posixpath.join(self.path, part.name)
        try:
            with storage_errors(path):
                return pa.parquet.read_table(
                    path, columns=columns, filters=is_within, filesystem=self.filesystem
                )
        except (CorruptData, StorageError) as error:
            raise type(error)(f"{error}; if it stays so, delete {self.path}: it is built anew") from error


def up_to_date(empty: KeyIndex, infos: Sequence[pa.fs.FileInfo], read: ReadRows) -> KeyIndex:
    """The index of these files of a folder; `empty` says where it lies and what is indexed. It is stored,
    unless the library cannot be written."""
    index = _load(empty) or empty
    listed = pa.table(
        {
            "name": pa.array([info.base_name for info in infos], pa.string()),
            "size": pa.array([info.size for info in infos], pa.int64()),
            "mtime": pa.array([info.mtime_ns or 0 for info in infos], pa.int64()),
        }
    )
    files = listed.join(index.files, ["name", "size", "mtime"]).select(FILES.names).sort_by("name")
    is_known = files["number"].is_valid()
    present, added = files.filter(is_known), files.filter(pa.compute.invert(is_known))
    if not added.num_rows and present.num_rows == index.files.num_rows:
        return index
    numbers = index.numbers + np.arange(added.num_rows, dtype=np.int32)
    added = added.set_column(FILES.get_field_index("number"), "number", pa.array(numbers))
    index = replace(
        index,
        files=pa.concat_tables([present, added]),
        numbers=index.numbers + added.num_rows,
        new=(*index.new, *_new_parts(index, added, read)),
    )
    with suppress(StorageError):
        index = _merged(index)
        _publish(index)
    return index


def _load(empty: KeyIndex) -> KeyIndex | None:
    """The stored state; None where it is missing, damaged, or of another format."""
    try:
        manifest = read_json(empty.filesystem, posixpath.join(empty.path, MANIFEST))
        if not manifest or (manifest["format"], manifest["columns"]) != (FORMAT, empty.schema.names):
            return None
        files, ranges, new = (
            tuple(Part(**part) for part in manifest[name]) for name in ("files", "ranges", "new")
        )
        sizes = {info.base_name: info.size for info in list_infos(empty.filesystem, empty.path)}
        if any(sizes.get(part.name) != part.size for part in (*files, *ranges, *new)):
            return None
        path = posixpath.join(empty.path, files[0].name)
        with storage_errors(path):
            table = pa.parquet.read_table(path, filesystem=empty.filesystem, schema=FILES)
        numbers, unused = manifest["numbers"], manifest["unused"]
    except (CorruptData, KeyError, TypeError):
        return None
    return replace(empty, files=table, numbers=numbers, ranges=ranges, new=new, unused=unused)


def _new_parts(index: KeyIndex, added: pa.Table, read: ReadRows) -> list[Part]:
    chunks = [added.slice(start, CHUNK_FILES) for start in range(0, added.num_rows, CHUNK_FILES)]
    small = replace(index, files=FILES.empty_table())
    return _map(_index_files, [(small, chunk, read) for chunk in chunks])


def _index_files(index: KeyIndex, files: pa.Table, read: ReadRows) -> Part:
    """Worker: the rows of some files as a part."""
    rows = read([posixpath.join(index.folder, name) for name in files["name"].to_pylist()])
    numbers = files["number"].to_numpy()[rows["file"].to_numpy()]
    rows = rows.set_column(rows.schema.get_field_index("file"), "file", pa.array(numbers))
    rows = rows.select(index.schema.names).cast(index.schema)
    rows = rows.take(pa.array(np.argsort(rows["track_key"].to_numpy(), kind="stable")))
    try:
        return _write(index, "new", rows)
    except StorageError:
        return Part(rows.num_rows, table=rows)


def _merged(index: KeyIndex) -> KeyIndex:
    """The index with its new parts in the ranges, where they are many or large."""
    new_rows = sum(part.rows for part in index.new)
    if len(index.new) <= MAX_NEW_PARTS and new_rows < MERGED_SHARE * (index.rows - new_rows):
        return index
    count = 1 << max(0, (index.rows - 1) // RANGE_ROWS).bit_length()
    ranges = _map(_merge, [(index, interval) for interval in _intervals(count)])
    return replace(index, ranges=tuple(ranges), new=())


def _merge(index: KeyIndex, interval: Interval) -> Part:
    """Worker: the rows of an interval as one part."""
    return _write(index, "range", index.between(interval, index.schema.names))


def _intervals(count: int) -> list[Interval]:
    width = (1 << KEY_BITS) // count
    return [(number * width, (number + 1) * width) for number in range(count)]


def _map(function: Callable[..., Part], arguments: list[tuple[Any, ...]]) -> list[Part]:
    """The results of a function, by tasks of Ray where there are several."""
    if len(arguments) <= 1:
        return [function(*each) for each in arguments]
    connect()
    import ray

    index = ray.put(arguments[0][0])
    task = ray.remote(function)
    parts: list[Part] = ray.get([task.remote(index, *rest) for _, *rest in arguments])
    return parts


def _write(index: KeyIndex, kind: str, rows: pa.Table) -> Part:
    with storage_errors(index.path):
        index.filesystem.create_dir(index.path, recursive=True)
    name = f"{kind}-{uuid.uuid4().hex}.parquet"
    path = posixpath.join(index.path, name)
    write_parquet(index.filesystem, path, rows, ROW_GROUP_ROWS)
    with storage_errors(path):
        return Part(rows.num_rows, name, index.filesystem.get_file_info(path).size)


def _publish(index: KeyIndex) -> None:
    """Store the state; and delete the files of states that no process can still be reading."""
    if any(part.table is not None for part in index.new):
        return
    parts = {"files": [_write(index, "files", index.files)], "ranges": index.ranges, "new": index.new}
    stored = {
        kind: [{"rows": part.rows, "name": part.name, "size": part.size} for part in each]
        for kind, each in parts.items()
    }
    used = {MANIFEST, *(part["name"] for each in stored.values() for part in each)}
    now, existing = time.time(), list_files(index.filesystem, index.path)
    unused = {
        name: index.unused.get(name, now) for name in map(posixpath.basename, existing) if name not in used
    }
    manifest = {"format": FORMAT, "columns": index.schema.names, "numbers": index.numbers, **stored}
    content = json.dumps(manifest | {"unused": unused}).encode()
    path = posixpath.join(index.path, MANIFEST)
    unfinished = f"{path}.{uuid.uuid4().hex}.part"  # several processes may publish at once
    with storage_errors(path):
        with index.filesystem.open_output_stream(unfinished) as stream:
            stream.write(content)
        index.filesystem.move(unfinished, path)
    for name, since in unused.items():
        if now - since > RETAINED_SECONDS:
            delete(index.filesystem, posixpath.join(index.path, name))
