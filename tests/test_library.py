from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import Conflict, CorruptData, InvalidOption, StorageError
from songray.keys import REVISION_BITS, hash64, track_key
from songray.library import Library
from songray.storage import read_json, write_json

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
    with pytest.raises(Conflict, match="256 are the most"):
        track_key("a:1", 256)


@given(st.dictionaries(st.text(max_size=3), st.sets(st.integers(0, 255), min_size=1)))
def test_the_newest_revision_of_each_track_is_kept(revisions: dict[str, set[int]]) -> None:
    keys = np.sort([track_key(name, one) for name, several in revisions.items() for one in several])
    expected = sorted(track_key(name, max(several)) for name, several in revisions.items())
    with TemporaryDirectory() as folder:
        table = Library.open(folder).table("embeddings", "some-run")
        table.append(rows(keys.tolist()), "a")
        assert table.newest(["track_key"]).rows["track_key"].to_pylist() == expected


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
    newest = table.newest(["title"])
    assert newest.rows.to_pylist() == [{"title": "sounds new"}]
    assert [newest.files[number] for number in newest.file] == [table.files()[2]]


def test_newest_reads_tracks_of_the_previous_format(library: Library) -> None:
    """It kept the completeness in 5 bits of a checksum, and a hash of the id in the other one."""
    table = library.table("tracks")
    checksum, audio_checksum = (hash64("x") & ~31) | 9, (hash64("id", "a:1") >> 32) << 32 | 77
    old = {"track_key": track_key("a:1", 0), "track_id": "a:1", "crawl": 1}
    schema = pa.schema([f for f in table.schema() if f.name not in ("id_hash", "completeness")])
    row = old | {"checksum": checksum, "audio_checksum": audio_checksum}
    table.append(pa.Table.from_pylist([row], schema), "1")
    columns = ["id_hash", "completeness", "checksum", "audio_checksum"]
    expected = {"id_hash": hash64("id", "a:1"), "completeness": 9, "checksum": hash64("x") & ~31}
    assert table.newest(columns).rows.to_pylist() == [expected | {"audio_checksum": 77}]
    new = {"track_key": track_key("b:1", 0), "track_id": "b:1", "crawl": 2, "completeness": 4, "id_hash": 5}
    table.append(pa.Table.from_pylist([new], table.schema()), "2")
    rows = table.newest(["track_id", "completeness"]).rows.to_pylist()
    assert {row["track_id"]: row["completeness"] for row in rows} == {"a:1": 9, "b:1": 4}
    assert table.read(["track_id", "id_hash"])["id_hash"].to_pylist() == [None, 5]


def test_a_table_refuses_rows_made_otherwise(library: Library) -> None:
    table = library.table("spectrograms", "default")
    table.claim({"n_fft": 2048})
    table.claim({"n_fft": 2048})
    with pytest.raises(Conflict, match=r"spectrograms/default was made with .*2048.*1024.*another name"):
        table.claim({"n_fft": 1024})


def test_a_library_opens_paths_and_uris(tmp_path: Path) -> None:
    write_json(Library.open(str(tmp_path)).filesystem, f"{tmp_path}/runs/x/run.json", {"a": 1})
    assert Library.open(tmp_path.as_uri()).folders("runs") == ["x"]
    with pytest.raises(InvalidOption, match="nowhere"):
        Library.open("nowhere://bucket/x")


def test_errors_of_storage_name_the_place(library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"{tmp_path}/file/library"):
        Library.open(str(tmp_path / "file" / "library"))
    table = library.table("tracks")
    table.append(pa.Table.from_pylist([{"track_key": 1}], table.schema()), "1")
    Path(table.files()[0]).write_bytes(b"no Parquet")
    with pytest.raises(CorruptData, match=table.path):
        table.read(["track_key"])
    Path(library.root, "x.json").write_text("{")
    with pytest.raises(CorruptData, match=r"x\.json"):
        read_json(library.filesystem, f"{library.root}/x.json")
