from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from songray.sources.base import Contents
from songray.sources.manifest import ManifestSource

ROW = {
    "id": "007", "title": "Röyksopp", "artist": "A;B", "url": "http://x.test/7.mp3", "album": "C",
    "date": "1999-05", "duration": "31.5", "genre": "jazz; funk", "isrc": "ZZ1", "explicit": "no",
    "recording": "r1",
}  # fmt: skip


def read(path: Path) -> Contents:
    source = ManifestSource(str(path))
    pieces = [piece for _, piece in source.read(list(source.pages()))]
    return Contents(
        tracks=[track for piece in pieces for track in piece.tracks],
        artists=[artist for piece in pieces for artist in piece.artists],
        problems=[problem for piece in pieces for problem in piece.problems],
    )


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        header = list(dict.fromkeys(name for row in rows for name in row))
        lines = [",".join(f'"{row.get(name, "")}"' for name in header) for row in rows]
        path.write_text("\ufeff" + "\n".join([",".join(header), *lines]) + "\n", "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_tells_the_same(tmp_path: Path, suffix: str) -> None:
    contents = read(write(tmp_path / f"songs{suffix}", [ROW]))
    (track,) = contents.tracks
    assert track.track_id == "manifest:007"
    assert (track.title, track.artist_names, track.genres) == ("Röyksopp", ["A", "B"], ["jazz", "funk"])
    assert (track.release_date, track.release_date_precision) == ("1999-05", "month")
    assert (track.duration_seconds, track.explicit, track.recording) == (31.5, False, "r1")
    assert [artist.name for artist in contents.artists] == ["A", "B"]
    assert not contents.problems


def test_a_bad_row_is_told_with_its_place_and_the_others_are_kept(tmp_path: Path) -> None:
    rows = [ROW, {"title": "no id"}, ROW | {"id": "8", "date": "May 1999"}, ROW | {"id": "9"}]
    contents = read(write(tmp_path / "songs.csv", rows))
    assert [track.track_id for track in contents.tracks] == ["manifest:007", "manifest:9"]
    assert len(contents.problems) == 2
    assert contents.problems[0].startswith("bad_row: row 2 of ")
    assert "'May 1999' is not like" in contents.problems[1]


def test_a_broken_line_of_json_is_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "songs.jsonl", [ROW])
    path.write_text(path.read_text() + "{broken\n[1]\n" + json.dumps(ROW | {"id": "8"}) + "\n")
    contents = read(path)
    assert len(contents.tracks) == 2
    assert len(contents.problems) == 2


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    (track,) = read(write(tmp_path / "songs.csv", [{"id": "1", "path": "music/1.mp3"}])).tracks
    assert track.location == str(tmp_path / "music/1.mp3")
    assert track.title == "1"


def test_a_folder_of_manifests_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [ROW])
    write(tmp_path / "b.jsonl", [ROW | {"id": "8"}])
    assert len(list(ManifestSource(str(tmp_path)).pages())) == 2
    assert len(read(tmp_path).tracks) == 2


@pytest.mark.parametrize("name", ["", "/nowhere/songs.csv"])
def test_a_manifest_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="--manifest"):
        list(ManifestSource(name).pages())


def test_a_file_that_is_no_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / "songs.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"songs\.txt: a manifest ends in"):
        read(tmp_path / "songs.txt")
