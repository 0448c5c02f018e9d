"""Small files become larger ones; rows, what is finished, and what a killed run leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from conftest import tone
from hypothesis import given
from hypothesis import strategies as st
from samples import add_previews

from songray import merge as module
from songray.audio.transform import TransformConfig, transform
from songray.errors import Conflict, InvalidOption
from songray.library import Library
from songray.merge import MergeConfig, group, merge
from songray.table import Table

RUN = "mfcc-x"


def add_tracks(library: Library, numbers: range) -> None:
    """A file of tracks, and one of their embeddings."""
    keys, names = [number << 8 for number in numbers], [f"a:{number}" for number in numbers]
    tracks = library.table("tracks")
    described = [
        {"track_key": key, "track_id": name, "crawl": numbers[0]}
        for key, name in zip(keys, names, strict=True)
    ]
    tracks.append(pa.Table.from_pylist(described, tracks.schema()), f"{numbers[0]:06d}")
    vectors = np.random.default_rng(numbers[0]).normal(size=(len(numbers), 4)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    embedded = pa.table({"track_key": keys, "track_id": names, "embedding": column})
    library.table("embeddings", RUN).append(embedded, "embeddings")


def rows_of(table: Table) -> list[dict[str, object]]:
    return sorted(table.read().to_pylist(), key=lambda row: row["track_key"])


@given(sizes=st.lists(st.integers(0, 30), max_size=30), most=st.integers(1, 25))
def test_groups_hold_small_files_alone_and_leave_at_most_one(sizes: list[int], most: int) -> None:
    infos = [
        pa.fs.FileInfo(f"{number:02d}", pa.fs.FileType.File, size=size) for number, size in enumerate(sizes)
    ]
    groups = list(group(infos, most))
    grouped = [path for paths in groups for path in paths]
    assert grouped == sorted(grouped)
    assert all(len(paths) > 1 and sum(sizes[int(path)] for path in paths) <= most for paths in groups)
    small = [info.path for info in infos if 2 * info.size < most]
    assert set(grouped) <= set(small) and len(small) - len(grouped) <= 1


def test_merged_tables_hold_the_same_rows(library: Library) -> None:
    for number in range(6):
        add_tracks(library, range(10 * number, 10 * number + 10))
    tables = [library.table("tracks"), library.table("embeddings", RUN)]
    before = [rows_of(table) for table in tables]
    newest = [table.newest(["track_key"]).rows for table in tables]
    summary = merge(library, MergeConfig())
    assert f"merge tracks: 6 files became 1\nmerge embeddings/{RUN}: 6 files became 1" == summary
    assert [rows_of(table) for table in tables] == before
    assert [table.newest(["track_key"]).rows for table in tables] == newest
    assert "1 files became 1" in merge(library, MergeConfig((f"embeddings/{RUN}",)))


@pytest.mark.usefixtures("cluster")
def test_what_stages_had_finished_stays_finished(library: Library, tmp_path: Path) -> None:
    previews, spectrograms = library.table("previews"), library.table("spectrograms", "default")
    sound = tone(tmp_path / "sound.mp3", seconds=1).read_bytes()
    for number in range(3):
        add_previews(library, [sound] * 2, [2 * number, 2 * number + 1])
        assert transform(library, TransformConfig()).done == 2
    add_previews(library, [sound], [6])  # whose spectrogram is pending
    rows, keys = rows_of(spectrograms), spectrograms.finished_keys()
    notes = set(Path(spectrograms.checkpoint_path).iterdir())
    merge(library, MergeConfig())
    assert [len(table.files()) for table in (previews, spectrograms)] == [1, 1]
    assert rows_of(spectrograms) == rows
    assert np.array_equal(spectrograms.finished_keys(), keys) and keys.size == 6
    assert len(notes) > len(list(Path(spectrograms.checkpoint_path).iterdir())) == 1
    summary = transform(library, TransformConfig())
    assert (summary.existing, summary.done) == (6, 1)
    assert len(rows_of(spectrograms)) == 7


def test_row_groups_stay_as_small_as_they_were(library: Library) -> None:
    """One clip of a table must be read without its neighbours."""
    table = library.table("previews")
    for part in range(3):
        keys = pa.array(range(40 * part, 40 * part + 40), pa.int64())
        rows = pa.table({"track_key": keys, "track_id": [f"a:{key}" for key in range(40)]})
        table.append(rows, f"{part}", row_group_rows=16)
    merge(library, MergeConfig())
    metadata = pa.parquet.read_metadata(table.files()[0])
    assert [metadata.row_group(number).num_rows for number in range(8)] == [16] * 7 + [8]


@pytest.mark.parametrize("deletions", [0, 1, 3])
def test_a_killed_merge_loses_and_doubles_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    for number in range(4):
        add_tracks(library, range(5 * number, 5 * number + 5))
    table = library.table("embeddings", RUN)
    rows, left = rows_of(table), deletions

    def killed(filesystem: pa.fs.FileSystem, path: str) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        Path(path).unlink()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "delete", killed)
        merge(library, MergeConfig((table.name,)))
    assert len(table.files()) == 5 - deletions
    assert sorted(table.newest(["track_key"]).rows["track_key"].to_pylist()) == [
        row["track_key"] for row in rows
    ]
    merge(library, MergeConfig((table.name,)))
    assert len(table.files()) == 1 and rows_of(table) == rows


def test_a_table_that_is_written_or_does_not_exist_is_refused(library: Library) -> None:
    add_tracks(library, range(3))
    with library.lease("tracks"), pytest.raises(Conflict):
        merge(library, MergeConfig())
    with pytest.raises(InvalidOption, match=rf"previews.*: tracks, embeddings/{RUN}"):
        merge(library, MergeConfig(("previews",)))
    with pytest.raises(InvalidOption, match="file_mb is 0"):
        MergeConfig(file_mb=0)
