"""One table of a library: Parquet files in a folder; Ray Data's checkpoints say which are finished."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.fs
import pyarrow.parquet
from numpy.typing import NDArray

from songray.checkpoints import clean, committed, unfinished_prefixes
from songray.errors import MissingInput
from songray.keys import (
    COMPLETENESS_MASK,
    LEFT,
    REVISION_BITS,
    Keys,
    clear_completeness,
    hash64,
    last_of_equal,
)
from songray.storage import claim, list_files, storage_errors, write_parquet

if TYPE_CHECKING:
    import pyarrow.dataset


@dataclass(frozen=True)
class TableKind:
    """What all tables of one name share. `key` is unique; where `newest` names a column, of rows that repeat
    a key only that with the largest value in it counts."""

    job: str
    key: tuple[str, ...]
    columns: dict[str, pa.DataType]
    newest: str | None = None


@dataclass(frozen=True)
class Newest:
    """The newest row of each track in a table, sorted by `track_key`."""

    rows: pa.Table  # the columns that were requested
    file: NDArray[np.int32]  # beside each row, the index in `files` of the file that holds it
    files: list[str]


@dataclass(frozen=True)
class Table:
    """One table in storage."""

    filesystem: pa.fs.FileSystem
    root: str
    name: str  # "previews", "embeddings/cae-1a2b3c4d"
    kind: TableKind

    @property
    def path(self) -> str:
        return posixpath.join(self.root, self.name)

    @property
    def checkpoint_path(self) -> str:
        return posixpath.join(self.root, "_checkpoints", self.name)

    def schema(self, **columns: pa.DataType) -> pa.Schema:
        """The declared schema, with more precise types for `columns`."""
        return pa.schema({**self.kind.columns, **columns})

    def files(self) -> list[str]:
        """Paths of the finished data files, oldest crawl first."""
        paths = list_files(self.filesystem, self.path)  # first: a file that appears later is not in it
        notes = list_files(self.filesystem, self.checkpoint_path)
        unfinished = unfinished_prefixes(self.filesystem, notes)
        return [
            path
            for path in paths
            if path.endswith(".parquet") and not posixpath.basename(path).startswith(unfinished)
        ]

    def finished_keys(self) -> Keys:
        """Sorted keys of the rows whose write was committed."""
        files = committed(list_files(self.filesystem, self.checkpoint_path))
        column = self.read(["track_key"], files=files).column("track_key")
        return np.sort(column.to_numpy())

    def read(
        self,
        columns: Sequence[str] | None = None,
        where: pa.dataset.Expression | None = None,
        files: Sequence[str] | None = None,
    ) -> pa.Table:
        """The finished rows, in the order of files; an absent table reads as an empty one."""
        paths = self.files() if files is None else list(files)
        names = list(columns or self.schema().names)
        if not paths:
            return self.schema().empty_table().select(names)
        with storage_errors(self.path):
            dataset = self._dataset(paths)
            return dataset.to_table(columns=list(columns) if columns else None, filter=where)

    def newest(self, columns: Sequence[str]) -> Newest:
        """One row a track: that of its newest revision and, of rows that repeat its key, the newest of these.

        This is the one place that knows which row counts. Memory: the columns, and 4 bytes a row.
        """
        files = self.files()
        number = {path: position for position, path in enumerate(files)}
        order = [column for column in ("track_key", self.kind.newest) if column]
        names = list(dict.fromkeys([*columns, *order]))
        is_upgraded = self.name == "tracks" and not UPGRADED.isdisjoint(columns)
        stored = list(dict.fromkeys([*names, "track_id", *UPGRADED])) if is_upgraded else names
        tables, file = [self.schema().empty_table().select(names)], [np.empty(0, np.int32)]
        with storage_errors(self.path):
            for batch in self.scan(stored, files):
                rows = pa.Table.from_batches([batch.record_batch])
                tables.append((upgrade_tracks(rows) if is_upgraded else rows).select(names))
                file.append(np.full(rows.num_rows, number[batch.fragment.path], np.int32))
        whole = pa.concat_tables(tables, promote_options="permissive")
        keys = [whole[name].to_numpy() for name in reversed(order)]  # np.lexsort sorts by the last one first
        position = np.lexsort(keys)
        last = position[last_of_equal(keys[-1][position] >> REVISION_BITS)]
        if self.kind.newest == "crawl":
            last = last[keys[0][last] != LEFT]
        return Newest(whole.select(list(columns)).take(pa.array(last)), np.concatenate(file)[last], files)

    def rows_of(
        self, keys: Keys, file: NDArray[np.int32], files: Sequence[str], columns: Sequence[str]
    ) -> pa.Table:
        """Columns of the row of each of some sorted keys, in their order. Of rows that repeat a key it is the
        one that `newest` chose, in the file that is given beside the key as an index in `files`. Only files
        that hold one of them are read. Raises MissingInput where a row is missing."""
        order = [column for column in ("track_key", self.kind.newest) if column]
        rows = self.read(
            list(dict.fromkeys([*order, "__filename", *columns])),
            where=pa.compute.field("track_key").isin(pa.array(keys)),
            files=[files[number] for number in np.unique(file)],
        )
        position = np.searchsorted(keys, rows["track_key"].to_numpy())
        is_in_file = pa.compute.index_in(rows["__filename"], pa.array(files)).to_numpy() == file[position]
        rows = rows.filter(pa.array(is_in_file)).sort_by([(column, "ascending") for column in order])
        rows = rows.filter(pa.array(last_of_equal(rows["track_key"].to_numpy())))
        if not np.array_equal(rows["track_key"].to_numpy(), keys):
            raise MissingInput(f"{self.name} was changed by another job: run this one again")
        return rows

    def scan(self, columns: Sequence[str], files: Sequence[str]) -> Iterator[pa.dataset.TaggedRecordBatch]:
        """The rows of some files in batches, each with the file that it comes from."""
        if files:
            yield from self._dataset(files).scanner(columns=list(columns)).scan_batches()

    def _dataset(self, files: Sequence[str]) -> pa.dataset.Dataset:
        """Files with the schema of the first one; declared columns that it lacks are null where a file lacks
        them: files of earlier versions have fewer columns."""
        from pyarrow import dataset  # loads pandas, for which `--help` should not wait

        stored = pa.parquet.read_schema(files[0], filesystem=self.filesystem)
        if posixpath.dirname(files[0]) == self.path:
            for column in self.schema():
                stored = stored if column.name in stored.names else stored.append(column)
        return dataset.dataset(list(files), schema=stored, filesystem=self.filesystem, format="parquet")

    def append(self, rows: pa.Table, name: str) -> str:
        """Add one file, whole or not at all; returns its path. Files are read in the order of their names."""
        with storage_errors(self.path):
            self.filesystem.create_dir(self.path, recursive=True)
            path = posixpath.join(self.path, f"{name}-{uuid.uuid4().hex[:8]}.parquet")
            write_parquet(self.filesystem, path, rows)
        return path

    def clean(self) -> None:
        """Delete what killed writers left behind. The caller holds the table's lease."""
        clean(self.filesystem, self.checkpoint_path, self.path)
        for folder in (self.path, self.checkpoint_path):
            self.delete([path for path in list_files(self.filesystem, folder) if path.endswith(".part")])

    def delete(self, files: Sequence[str]) -> None:
        with storage_errors(self.path):
            for path in files:
                self.filesystem.delete_file(path)

    def claim(self, settings: dict[str, Any]) -> None:
        """Store the settings that make this table's rows. Raises Conflict where other settings are stored."""
        claim(self.filesystem, self.path, settings)


UPGRADED = {"id_hash", "completeness", "checksum", "audio_checksum"}


def upgrade_tracks(rows: pa.Table) -> pa.Table:
    """Rows of `tracks` with `track_id` and the columns UPGRADED, in the current format.

    Earlier versions kept the completeness in the lower 5 bits of `checksum` and a hash of the id in the upper
    half of `audio_checksum`, without columns of their own.
    """
    is_old = rows["id_hash"].is_null().to_numpy()
    if not is_old.any():
        return rows
    checksum = pa.compute.fill_null(rows["checksum"], 0).to_numpy()
    hashes = [hash64("id", name) for name in rows["track_id"].to_pylist()]
    audio_checksum = pa.compute.fill_null(rows["audio_checksum"], 0).to_numpy() & 0xFFFFFFFF
    completeness = pa.compute.fill_null(rows["completeness"], 0).to_numpy()
    upgraded = {
        "id_hash": pa.array(hashes, pa.int64()),
        "completeness": pa.array(np.where(is_old, checksum & COMPLETENESS_MASK, completeness), pa.int32()),
        "checksum": pa.array(clear_completeness(checksum)),
        "audio_checksum": pa.array(audio_checksum),
    }
    for name, column in upgraded.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows
