"""The key index of a table: what it answers, whatever happened to the files and to it, and what it opens."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songray import key_index
from songray.checkpoints import Delegate
from songray.errors import StorageError
from songray.keys import EVERY_KEY, KEY_BITS, are_among
from songray.library import Library
from songray.stages import find_pending
from songray.table import Newest, Table

COLUMNS = ["track_key", "error"]


def append(table: Table, keys: list[int], name: str = "0") -> str:
    errors = [None if key % 3 else "not_audio" for key in keys]
    schema = pa.schema({"track_key": pa.int64(), "error": pa.string()})
    return table.append(pa.table([keys, errors], schema=schema), name)


def expected(table: Table) -> list[tuple[int, str | None, str]]:
    """The newest row of each track and its file, from the data files."""
    files = table.files()
    return listed(table._newest(table._rows_with_file(COLUMNS, files), files, COLUMNS))


def listed(newest: Newest) -> list[tuple[int, str | None, str]]:
    files = [newest.files[number] for number in newest.file]
    keys, errors = newest.rows["track_key"].to_pylist(), newest.rows["error"].to_pylist()
    return list(zip(keys, errors, files, strict=True))


KEY = st.integers(0, (1 << KEY_BITS) - 1)
STEP = st.one_of(
    st.tuples(st.just("append"), st.lists(KEY, max_size=9)),
    st.tuples(st.just("rewrite"), st.lists(KEY, min_size=1, max_size=9)),
    st.tuples(st.just("delete"), st.just([])),
    st.tuples(st.just("read"), st.just([])),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=12), st.integers(0, 3))
def test_it_answers_as_the_files_do(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[int]]], seed: int
) -> None:
    """Files appear, change and vanish between reads; ranges and merges are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_index, "RANGE_ROWS", 4)
        patch.setattr(key_index, "MAX_NEW_PARTS", 2)
        patch.setattr(key_index, "_map", lambda function, arguments: [function(*each) for each in arguments])
        table = Library.open(str(tmp_path_factory.mktemp("library"))).table("previews")
        random = np.random.default_rng(seed)
        for name, keys in steps:
            files = table.files()
            if name == "append":
                append(table, keys, f"{len(files):03}")
            elif name == "read":
                assert listed(table.newest(COLUMNS)) == expected(table)
            elif files:
                path = str(random.choice(files))
                os.remove(path)
                if name == "rewrite":
                    os.rename(append(table, keys, "rewritten"), path)
        assert listed(table.newest(COLUMNS)) == expected(table)
        index = table.key_index()
        parts = [listed(table.newest_between(index, each, COLUMNS)) for each in index.intervals]
        assert list(chain(*parts)) == expected(table)


@pytest.fixture
def table(library: Library) -> Table:
    """A table of three files, with its key index."""
    table = library.table("previews")
    for number in range(3):
        append(table, [(number * 10 + row) << 56 | 1 for row in range(4)], f"{number}")
    table.newest(COLUMNS)
    return table


def lose(folder: Path) -> None:
    shutil.rmtree(folder)


def tear_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])


def tear_range(folder: Path) -> None:
    (part,) = folder.glob("range-*")
    part.write_bytes(part.read_bytes()[:-9])


def lose_files(folder: Path) -> None:
    (part,) = folder.glob("files-*")
    part.unlink()


def another_format(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"error"', '"errors"'))


@pytest.mark.parametrize("damage", [lose, tear_manifest, tear_range, lose_files, another_format])
def test_it_is_built_anew(table: Table, damage: Callable[[Path], None]) -> None:
    before = listed(table.newest(COLUMNS))
    damage(Path(table.key_paths[0]))
    assert listed(table.newest(COLUMNS)) == before == expected(table)


def test_an_earlier_state_is_brought_up_to_date(table: Table, tmp_path: Path) -> None:
    folder = Path(table.key_paths[0])
    shutil.copytree(folder, tmp_path / "before")
    append(table, [257, 769], "9")
    os.remove(table.files()[0])
    table.newest(COLUMNS)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "before", folder)
    assert listed(table.newest(COLUMNS)) == expected(table)


def test_bits_that_changed_are_noticed(table: Table) -> None:
    (part,) = Path(table.key_paths[0]).glob("range-*")
    content = bytearray(part.read_bytes())
    content[12] ^= 255
    part.write_bytes(content)
    with pytest.raises(StorageError, match=r"delete .*_keys/previews/rows: it is built anew"):
        table.newest(COLUMNS)


class Counting(Delegate):
    """Counts how often each file is opened."""

    def __init__(self, filesystem: pa.fs.FileSystem) -> None:
        super().__init__(filesystem)
        self.opened: Counter[str] = Counter()

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.opened[path] += 1
        return super().open_input_file(path)


def test_only_files_with_pending_rows_are_opened(library: Library, table: Table) -> None:
    output = library.table("spectrograms", "default")
    find_pending(table, output)
    handler = Counting(library.filesystem)
    counted = replace(table, filesystem=pa.fs.PyFileSystem(handler))
    assert find_pending(counted, output).rows == 8
    assert not handler.opened.keys() & {*table.files()}
    new = append(table, [257, 769], "9")
    pending = find_pending(counted, output)
    assert handler.opened.keys() & {*table.files()} == {new}
    assert set(pending.files) == {*table.files()} and pending.rows == 10


def test_a_library_that_cannot_be_written_is_read(table: Table) -> None:
    class ReadOnly(Delegate):
        def open_output_stream(self, path: str, metadata: dict[str, str]) -> pa.NativeFile:
            raise PermissionError(path)

        def create_dir(self, path: str, recursive: bool) -> None:
            raise PermissionError(path)

    append(table, [257, 769], "9")
    read_only = replace(table, filesystem=pa.fs.PyFileSystem(ReadOnly(table.filesystem)))
    assert listed(read_only.newest(COLUMNS)) == expected(table)
    shutil.rmtree(Path(table.key_paths[0]))
    assert listed(read_only.newest(COLUMNS)) == expected(table)
    assert not Path(table.key_paths[0]).exists()


def test_states_that_no_process_reads_are_deleted(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clock = Path(table.key_paths[0]), [time.time() + 9 * key_index.RETAINED_SECONDS]
    monkeypatch.setattr(key_index.time, "time", lambda: clock[0])
    for waited, states in ((0, 2), (0, 3), (2 * key_index.RETAINED_SECONDS, 2), (0, 3)):
        clock[0] += waited
        append(table, [5], "9")
        table.newest(COLUMNS)
        assert len(list(folder.glob("files-*"))) == states


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_many_files_and_ranges_are_indexed_by_tasks(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_index, "CHUNK_FILES", 4)
    monkeypatch.setattr(key_index, "RANGE_ROWS", 16)
    table, random = library.table("previews"), np.random.default_rng(0)
    for number in range(10):
        append(table, random.integers(0, 1 << KEY_BITS, 9).tolist(), f"{number}")
    assert listed(table.newest(COLUMNS)) == expected(table)
    index = table.key_index()
    assert len(index.ranges) == 8 and not index.new
    assert index.between(EVERY_KEY).num_rows == 90


@given(st.lists(st.integers(-9, 9)), st.lists(st.integers(-9, 9)))
def test_keys_are_looked_up_among_sorted_ones(keys: list[int], others: list[int]) -> None:
    found = are_among(np.array(keys, np.int64), np.array(sorted(others), np.int64))
    assert found.tolist() == [key in others for key in keys]
