from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.library import REVISION_BITS, Library, newest_revisions, track_key, write_json

EMBEDDING = pa.list_(pa.float32(), 2)


def rows(keys: list[int]) -> pa.Table:
    return pa.table(
        {
            "track_key": pa.array(keys, pa.int64()),
            "track_id": [str(key) for key in keys],
            "embedding": pa.array([[float(key), 0.0] for key in keys], EMBEDDING),
        }
    )


@given(st.text(), st.integers(0, 255))
def test_a_key_is_positive_and_holds_its_revision(track_id: str, revision: int) -> None:
    key = track_key(track_id, revision)
    assert 0 <= key < 2**63
    assert key & 255 == revision
    assert key >> REVISION_BITS == track_key(track_id, 0) >> REVISION_BITS


def test_a_key_has_room_for_256_revisions() -> None:
    with pytest.raises(ValueError, match="256 are the most"):
        track_key("a:1", 256)


@given(st.dictionaries(st.text(max_size=3), st.sets(st.integers(0, 255), min_size=1)))
def test_the_newest_revision_of_each_track_is_kept(revisions: dict[str, set[int]]) -> None:
    keys = np.sort([track_key(name, one) for name, several in revisions.items() for one in several])
    expected = sorted(track_key(name, max(several)) for name, several in revisions.items())
    assert newest_revisions(keys.astype(np.int64)).tolist() == expected


def test_a_table_is_parquet_that_plain_pyarrow_reads(library: Library) -> None:
    table = library.table("embeddings", "some-run")
    table.append(rows([1, 2]), "a")
    table.append(rows([3]), "b")
    found = pa.parquet.read_table(table.path)
    assert found["track_key"].to_pylist() == [1, 2, 3]
    assert found.schema.field("embedding").type == EMBEDDING


def test_an_absent_table_reads_as_empty_with_its_columns(library: Library) -> None:
    found = library.table("tracks").read(["track_id", "genres"])
    assert found.num_rows == 0
    assert found.column_names == ["track_id", "genres"]


def test_files_that_ray_has_not_committed_are_not_read(library: Library) -> None:
    table = library.table("embeddings", "some-run")
    table.append(rows([1]), "uuid_000001")
    table.append(rows([2]), "uuid_000002")
    folder = Path(table.checkpoint_path)
    folder.mkdir(parents=True)
    pa.parquet.write_table(rows([1]).select(["track_key"]), folder / "uuid_000001.parquet")
    pa.parquet.write_table(rows([2]).select(["track_key"]), folder / "uuid_000002.pending.parquet")
    assert table.read()["track_key"].to_pylist() == [1]
    assert table.finished_keys().tolist() == [1]


def test_newest_takes_the_newest_row_of_the_newest_revision(library: Library) -> None:
    table = library.table("tracks")
    for crawl, (revision, title) in enumerate([(0, "old"), (0, "renamed"), (1, "sounds new"), (0, "late")]):
        row = {"track_key": track_key("a:1", revision), "crawl": crawl, "title": title}
        table.append(pa.Table.from_pylist([row], table.schema()), f"{crawl}")
    assert table.newest(["title"]).to_pylist() == [{"title": "sounds new"}]


def test_a_table_refuses_rows_made_otherwise(library: Library) -> None:
    table = library.table("spectrograms", "default")
    table.claim({"n_fft": 2048})
    table.claim({"n_fft": 2048})
    with pytest.raises(ValueError, match=r"spectrograms/default was made by .*2048.*1024.*another name"):
        table.claim({"n_fft": 1024})


def test_a_library_opens_paths_and_uris(tmp_path: Path) -> None:
    write_json(Library.open(str(tmp_path)).filesystem, f"{tmp_path}/runs/x/run.json", {"a": 1})
    assert Library.open(tmp_path.as_uri()).folders("runs") == ["x"]
    with pytest.raises((ValueError, pa.ArrowInvalid), match="nowhere"):
        Library.open("nowhere://bucket/x")
