"""Merges small files of tables, which many small runs leave behind, into larger ones."""

from __future__ import annotations

import json
import posixpath
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.checkpoints import committed
from songray.cluster import connect
from songray.errors import InvalidOption
from songray.leases import Lease
from songray.library import Library
from songray.storage import delete, list_infos, storage_errors, write_parquet
from songray.table import Table

MARK = "-merged"  # in the names of files that hold the rows of others
REPLACED = b"songray:replaced"  # in their metadata: the names of these


@dataclass(frozen=True)
class MergeConfig:
    tables: tuple[str, ...] = ()
    """Tables whose files are merged, such as previews or embeddings/<run>; by default all that stages read
    by track. No other job should read them meanwhile."""
    file_mb: int = 128
    """Files smaller than half of this many megabytes are merged, up to this size."""

    def __post_init__(self) -> None:
        if self.file_mb < 1:
            raise InvalidOption(f"file_mb is {self.file_mb}: must be at least 1")


def merge(library: Library, config: MergeConfig) -> str:
    """Merge small files of tables, and the notes of Ray Data's checkpoints. Returns a summary.

    A killed run loses nothing: a merged file is whole before the files that it replaces are deleted, and
    until then readers find the same row twice, of which they take one. Raises Conflict where another process
    writes a table, InvalidOption for one that does not exist.
    """
    tables = {table.name: table for table in library.tables() if table.kind.indexed is not None}
    if unknown := [name for name in config.tables if name not in tables]:
        raise InvalidOption(
            f"--tables {unknown[0]}: those whose files can be merged are: {', '.join(tables)}"
        )
    lines = []
    for name in config.tables or tables:
        with library.lease(name) as lease:
            lines.append(merge_table(tables[name], config.file_mb * 1_000_000, lease))
    return "\n".join(lines)


def merge_table(table: Table, file_bytes: int, lease: Lease) -> str:
    """Merge the small files and notes of one table. The caller holds its lease."""
    table.clean()
    delete_replaced(table)
    infos = table.infos()
    groups = list(group(infos, file_bytes))
    for number, _ in enumerate(merged(table, groups), 1):
        lease.check()
        _report(f"merge {table.name}: {number} of {len(groups)} files written")
    notes = list_infos(table.filesystem, table.checkpoint_path)
    finished = set(committed([info.path for info in notes]))
    for paths in group([info for info in notes if info.path in finished], file_bytes):
        lease.check()
        merge_notes(table, paths)
    return f"merge {table.name}: {len(infos)} files became {len(table.files())}"


def group(infos: Sequence[pa.fs.FileInfo], file_bytes: int) -> Iterator[list[str]]:
    """Groups of at least two paths of files smaller than half of some bytes, which together have at most
    these; in their order."""
    paths: list[str] = []
    size = 0
    for info in infos:
        if 2 * info.size >= file_bytes:
            continue
        if size + info.size > file_bytes:
            yield paths  # two at least, since each has less than half
            paths, size = [], 0
        paths.append(info.path)
        size += info.size
    if len(paths) > 1:
        yield paths


def merged(table: Table, groups: list[list[str]]) -> Iterator[object]:
    """Merge each group of files; by tasks of Ray where there are several. Yields after each."""
    if len(groups) <= 1:
        yield from (merge_files(table, paths) for paths in groups)
        return
    connect()
    import ray.data

    items = ray.data.from_items([{"paths": paths} for paths in groups], override_num_blocks=len(groups))
    yield from items.map(lambda row: {"path": merge_files(table, row["paths"])}).iter_rows()


def merge_files(table: Table, paths: Sequence[str]) -> str:
    """Write the rows of some files as one, whose metadata name these, and delete them. Returns its path."""
    parts, row_group_rows = [], 1
    for path in paths:
        with storage_errors(path), table.filesystem.open_input_file(path) as file:
            parquet = pa.parquet.ParquetFile(file)
            parts.append(parquet.read())
            row_group_rows = max(row_group_rows, parquet.metadata.row_group(0).num_rows)
    names = [posixpath.basename(path) for path in paths]
    rows = pa.concat_tables(parts, promote_options="permissive")
    rows = rows.replace_schema_metadata({REPLACED: json.dumps(names)})
    stem = names[-1].removesuffix(".parquet").partition(MARK)[0]  # files are read in the order of their names
    path = table.append(rows, f"{stem}{MARK}", row_group_rows)
    for replaced in paths:
        delete(table.filesystem, replaced)
    return path


def delete_replaced(table: Table) -> None:
    """Delete the files that a killed run had merged and not yet deleted."""
    for path in [path for path in table.files() if MARK in posixpath.basename(path)]:
        with storage_errors(path):
            metadata = pa.parquet.read_schema(path, filesystem=table.filesystem).metadata or {}
        for name in json.loads(metadata.get(REPLACED, b"[]")):
            delete(table.filesystem, posixpath.join(table.path, name))


def merge_notes(table: Table, paths: Sequence[str]) -> None:
    """Write the keys of some committed notes as one note, and delete them; but for notes without a row, by
    which tasks were given up."""
    parts = {}
    for path in paths:
        with storage_errors(path):
            keys = pa.parquet.read_table(path, columns=["track_key"], filesystem=table.filesystem)
        if keys.num_rows:
            parts[path] = keys["track_key"].to_numpy()
    if len(parts) < 2:
        return
    keys = np.unique(np.concatenate(list(parts.values())))
    merged_note = posixpath.join(table.checkpoint_path, f"merged-{uuid.uuid4().hex}.parquet")
    write_parquet(table.filesystem, merged_note, pa.table({"track_key": keys}))
    for path in parts:
        delete(table.filesystem, path)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
