"""One table of a library: Parquet files in a folder; Ray Data's checkpoints say which are finished."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.fs
import pyarrow.parquet
from numpy.typing import NDArray

from songray.checkpoints import clean, committed, unfinished_prefixes
from songray.errors import MissingInput
from songray.key_index import KeyIndex, up_to_date
from songray.keys import (
    EVERY_KEY,
    LEFT,
    REVISION_BITS,
    Interval,
    Keys,
    Only,
    are_among,
    last_of_equal,
)
from songray.storage import claim, delete, list_files, list_infos, storage_errors, write_parquet
from songray.upgrades import UPGRADED, upgrade_tracks

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
    indexed: tuple[str, ...] | None = None  # columns of the key index; None: the table has none
    folders: int = 0  # names that follow that of the table: 1 for embeddings/<run>


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

    @property
    def key_paths(self) -> tuple[str, str]:
        """The folders of the key indexes: of all finished rows, and of the committed ones."""
        folder = posixpath.join(self.root, "_keys", self.name)
        return posixpath.join(folder, "rows"), posixpath.join(folder, "committed")

    def schema(self, **columns: pa.DataType) -> pa.Schema:
        """The declared schema, with more precise types for `columns`."""
        return pa.schema({**self.kind.columns, **columns})

    def files(self) -> list[str]:
        """Paths of the finished data files, oldest crawl first."""
        return [info.path for info in self.infos()]

    def infos(self) -> list[pa.fs.FileInfo]:
        """The finished data files, oldest crawl first."""
        infos = list_infos(self.filesystem, self.path)  # first: a file that appears later is not in it
        notes = list_files(self.filesystem, self.checkpoint_path)
        unfinished = unfinished_prefixes(self.filesystem, notes)
        return [
            info
            for info in infos
            if info.path.endswith(".parquet") and not info.base_name.startswith(unfinished)
        ]

    def key_index(self) -> KeyIndex:
        """The key index of the finished rows."""
        columns = self.kind.indexed or ()
        read = partial(self._rows_with_file, ["track_key", *columns])
        return up_to_date(self._empty_index(self.key_paths[0], self.path, columns), self.infos(), read)

    def finished_keys(self) -> Keys:
        """Sorted keys of the rows whose write was committed. Memory: 8 bytes a row."""
        keys: Keys = self.finished_index().between(EVERY_KEY)["track_key"].to_numpy()
        return keys

    def finished_index(self) -> KeyIndex:
        """The key index of the rows whose write was committed; `file` is a note."""
        infos = list_infos(self.filesystem, self.checkpoint_path)
        notes = set(committed([info.path for info in infos]))
        empty = self._empty_index(self.key_paths[1], self.checkpoint_path, ())
        read = partial(self._rows_with_file, ["track_key"])
        return up_to_date(empty, [info for info in infos if info.path in notes], read)

    def _empty_index(self, path: str, folder: str, columns: Sequence[str]) -> KeyIndex:
        types = {name: self.kind.columns[name] for name in ("track_key", *columns)}
        return KeyIndex(self.filesystem, path, folder, pa.schema({**types, "file": pa.int32()}))

    def forget_keys(self) -> None:
        """Delete the key indexes, which are built anew when they are needed."""
        for path in self.key_paths:
            for file in list_files(self.filesystem, path):
                delete(self.filesystem, file)

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

        Where the key index has the columns, no data file is opened. Memory: the columns, and 4 bytes a row.
        """
        if self.kind.indexed is None or not {*columns} <= {"track_key", *self.kind.indexed}:
            files = self.files()
            rows = self._rows_with_file(self._ordered(columns), files)
            return self._newest(rows, files, columns)
        index = self.key_index()
        parts = [self.newest_between(index, interval, columns) for interval in index.intervals]
        rows = pa.concat_tables([part.rows for part in parts])
        files = sorted(filter(None, index.paths))
        file = index.order[np.concatenate([part.file for part in parts])]
        return Newest(rows, file, files)

    def newest_between(self, index: KeyIndex, interval: Interval, columns: Sequence[str]) -> Newest:
        """`newest` of the tracks with keys in one of the intervals of the table's key index."""
        return self._newest(index.between(interval, [*self._ordered(columns), "file"]), index.paths, columns)

    def newest_rows(self, tracks: Keys, columns: Sequence[str]) -> pa.Table:
        """`track_key` and columns of the newest row of each of some tracks, given by their sorted numbers, of
        those that have one. Only files that hold one of them are read. Memory: a range of keys, and the
        rows."""
        index = self.key_index()
        keys, file = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for interval in index.intervals:
            low, high = np.searchsorted(tracks, np.array(interval, np.uint64) >> REVISION_BITS)
            if low < high:
                newest = self.newest_between(index, interval, ["track_key"])
                found = newest.rows["track_key"].to_numpy()
                is_named = are_among(found >> REVISION_BITS, tracks[low:high])
                keys.append(found[is_named])
                file.append(newest.file[is_named])
        if not (every := np.concatenate(keys)).size:
            return self.schema().empty_table().select(["track_key", *columns])
        return self.rows_of(every, np.concatenate(file), index.paths, columns).select(["track_key", *columns])

    def usable_between(self, index: KeyIndex, interval: Interval) -> tuple[Keys, NDArray[np.int32]]:
        """The keys, sorted, and the numbers of the files of the newest rows in an interval of the key index,
        but for those with an error."""
        has_errors = "error" in self.kind.columns
        newest = self.newest_between(index, interval, ["track_key", *(["error"] if has_errors else [])])
        keys = newest.rows["track_key"].to_numpy()
        if not has_errors:
            return keys, newest.file
        is_usable = newest.rows["error"].is_null().to_numpy()
        return keys[is_usable], newest.file[is_usable]

    def sample_keys(self, most: int, only: Only | None = None, most_files: int | None = None) -> Keys:
        """The lowest keys of tracks without an error, sorted, of those that are among the keys of `only`, and
        lie in so many random files at most. Keys are hashes: the lowest ones are a random sample."""
        index, keys = self.key_index(), np.empty(0, np.int64)
        if most_files is not None:
            files = np.random.default_rng(0).permutation(np.flatnonzero(index.paths))[:most_files]
        for interval in index.intervals:
            usable, file = self.usable_between(index, interval)
            if most_files is not None:
                usable = usable[np.isin(file, files)]
            keys = np.append(keys, usable if only is None else usable[are_among(usable, only(interval))])
            if keys.size >= most:
                break
        return keys[:most]

    def _ordered(self, columns: Sequence[str]) -> list[str]:
        """The columns, and those by which the newest row is known."""
        return list(dict.fromkeys([*columns, "track_key", *([self.kind.newest] if self.kind.newest else [])]))

    def _newest(self, rows: pa.Table, files: list[str], columns: Sequence[str]) -> Newest:
        """This is the one place that knows which row counts."""
        order = ["track_key", *([self.kind.newest] if self.kind.newest else [])]
        keys = [rows[name].to_numpy() for name in reversed(order)]  # np.lexsort sorts by the last one first
        position = np.lexsort(keys)
        last = position[last_of_equal(keys[-1][position] >> REVISION_BITS)]
        if self.kind.newest == "crawl":
            last = last[keys[0][last] != LEFT]
        return Newest(rows.select(list(columns)).take(pa.array(last)), rows["file"].to_numpy()[last], files)

    def _rows_with_file(self, columns: Sequence[str], files: Sequence[str]) -> pa.Table:
        """Columns of all rows of some files, and `file`, the index of each row's file among them."""
        number = {path: position for position, path in enumerate(files)}
        names = list(columns)
        is_upgraded = self.name == "tracks" and not UPGRADED.isdisjoint(columns)
        stored = list(dict.fromkeys([*names, "track_id", *UPGRADED])) if is_upgraded else names
        tables, file = [self.schema().empty_table().select(names)], [np.empty(0, np.int32)]
        with storage_errors(self.path):
            for batch in self.scan(stored, files):
                rows = pa.Table.from_batches([batch.record_batch])
                tables.append((upgrade_tracks(rows) if is_upgraded else rows).select(names))
                file.append(np.full(rows.num_rows, number[batch.fragment.path], np.int32))
        whole = pa.concat_tables(tables, promote_options="permissive")
        return whole.append_column("file", pa.array(np.concatenate(file)))

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

    def append(self, rows: pa.Table, name: str, row_group_rows: int | None = None) -> str:
        """Add one file, whole or not at all; returns its path. Files are read in the order of their names."""
        with storage_errors(self.path):
            self.filesystem.create_dir(self.path, recursive=True)
            path = posixpath.join(self.path, f"{name}-{uuid.uuid4().hex[:8]}.parquet")
            write_parquet(self.filesystem, path, rows, row_group_rows)
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
