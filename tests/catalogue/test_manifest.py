from __future__ import annotations

import csv
import json
import os
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from songray.catalogue.crawl import read_batch
from songray.catalogue.sources.base import Contents
from songray.catalogue.sources.manifest.rows import ROWS_PER_PIECE
from songray.catalogue.sources.manifest.source import ManifestSource, describe

ROW = {
    "id": "007", "title": "Röyksopp", "artist": "A;B", "url": "http://x.test/7.mp3", "album": "C",
    "date": "1999-05", "duration": "31.5", "genre": "jazz; funk", "isrc": "ZZ1", "explicit": "no",
    "recording": "r1", "tempo": "120.5", "key": "F# minor", "license": "CC BY 4.0",
}  # fmt: skip


def read(path: Path) -> Contents:
    source = ManifestSource(str(path))
    pieces = [piece for _, piece in source.read(list(source.pages()))]
    return Contents(
        tracks=[track for piece in pieces for track in piece.tracks],
        artists=[artist for piece in pieces for artist in piece.artists],
        playlist_entries=[entry for piece in pieces for entry in piece.playlist_entries],
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
def test_every_format_gives_the_same_track(tmp_path: Path, suffix: str) -> None:
    contents = read(write(tmp_path / f"songs{suffix}", [ROW]))
    (track,) = contents.tracks
    assert track.track_id == "manifest:007"
    assert (track.title, track.artist_names, track.genres) == ("Röyksopp", ["A", "B"], ["jazz", "funk"])
    assert (track.release_date, track.release_date_precision) == ("1999-05", "month")
    assert (track.duration_seconds, track.explicit, track.recording) == (31.5, False, "r1")
    assert (track.tempo_bpm, track.key, track.mode, track.license) == (120.5, "F#", "minor", "CC BY 4.0")
    assert [artist.name for artist in contents.artists] == ["A", "B"]
    assert not contents.problems


def test_a_bad_row_is_a_problem_with_its_place_and_the_others_are_read(tmp_path: Path) -> None:
    rows = [ROW, {"title": "no id"}, ROW | {"id": "8", "date": "May 1999"}, ROW | {"id": "9"}]
    contents = read(write(tmp_path / "songs.csv", rows))
    assert [track.track_id for track in contents.tracks] == ["manifest:007", "manifest:9"]
    assert len(contents.problems) == 2
    assert {problem.kind for problem in contents.problems} == {"bad_row"}
    assert contents.problems[0].detail.startswith("row 2 of ")
    assert "'May 1999' is not like" in contents.problems[1].detail


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
def test_a_missing_manifest_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="--manifest"):
        list(ManifestSource(name).pages())


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("songs.txt", "hello", "a manifest ends in"),
        ("songs.parquet", "hello", "Parquet"),
        ("lists.json", '{"info": {}, "playlists": [{"name": "x", "pid": 1, "tracks": [', "broken JSON"),
        ("lists.json", '{"info": {}, "playlists": []}', "no playlists"),
        ("lists.json", '[{"id": 1}]', "no playlists"),
        ("lists.json", "", "broken JSON"),
    ],
)
def test_a_file_in_another_format_is_unreadable(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    (problem,) = read(tmp_path / name).problems
    assert (problem.kind, problem.detail.split(": ")[0]) == ("unreadable", str(tmp_path / name))
    assert reason in problem.detail


def test_a_track_may_have_an_isrc_in_place_of_a_url(tmp_path: Path) -> None:
    path = write(tmp_path / "songs.csv", [{"id": "1", "isrc": "GBDUW0000059"}, {"id": "2", "isrc": ""}])
    contents = read(path)
    (track,) = contents.tracks
    assert (track.track_id, track.isrc, track.location) == ("manifest:1", "GBDUW0000059", None)
    assert len(contents.problems) == 1
    assert "needs id and url, or id and isrc" in contents.problems[0].detail


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_playlists_are_recognised_by_their_columns(tmp_path: Path, suffix: str) -> None:
    tracks = ["007", "deezer:3135556", "spotify:track:4uLU6hMCjMI75M1A2tKUQC", "4:33", ""]
    rows = [{"playlist": "Mine", "position": str(n), "track": track} for n, track in enumerate(tracks)]
    rows += [{"playlist": "Mine", "position": "first", "track": "8"}]
    contents = read(write(tmp_path / f"lists{suffix}", rows))
    assert not contents.tracks
    assert {(entry.playlist_id, entry.playlist) for entry in contents.playlist_entries} == {
        ("manifest:playlist:Mine", "Mine")
    }
    assert [(entry.position, entry.track_id) for entry in contents.playlist_entries] == [
        (0, "manifest:007"), (1, "deezer:3135556"), (2, "spotify:4uLU6hMCjMI75M1A2tKUQC"),
        (3, "manifest:4:33"),
    ]  # fmt: skip
    assert "row 5 of" in contents.problems[0].detail
    assert "position 'first' in playlist Mine is not" in contents.problems[1].detail


def million(path: Path, names: list[str], tracks: int) -> Path:
    """Playlists in the format of the Million Playlist Dataset."""
    playlists = [
        {"name": name, "collaborative": "false", "pid": pid, "modified_at": 1493424000, "num_tracks": tracks,
         "tracks": [song(pid * tracks + place, place) for place in range(tracks)]}
        for pid, name in enumerate(names)
    ]  # fmt: skip
    path.write_text(json.dumps({"info": {"slice": "0-999", "version": "v1"}, "playlists": playlists}))
    return path


def song(number: int, place: int) -> dict[str, Any]:
    return {
        "pos": place, "artist_name": f"Artist {number % 7}", "track_uri": f"spotify:track:T{number:021d}",
        "artist_uri": f"spotify:artist:R{number % 7:021d}", "track_name": f"Song {number}",
        "album_uri": f"spotify:album:A{number:021d}", "duration_ms": 226863, "album_name": f"Album {number}",
    }  # fmt: skip


def test_the_million_playlist_dataset_has_playlists_and_tracks_of_spotify(tmp_path: Path) -> None:
    names = ["Throwbacks", "Café ☕"]
    contents = read(million(tmp_path / "mpd.slice.0-999.json", names, 3))
    entries = [(entry.playlist_id, entry.playlist, entry.position) for entry in contents.playlist_entries]
    expected = [(f"manifest:playlist:{pid}", names[pid], place) for pid in (0, 1) for place in range(3)]
    assert entries == expected
    assert [entry.track_id for entry in contents.playlist_entries] == [
        track.track_id for track in contents.tracks
    ]
    track = contents.tracks[5]
    assert (track.track_id, track.title, track.location) == (f"spotify:T{5:021d}", "Song 5", None)
    assert (track.artist_names, track.album, track.duration_seconds) == (["Artist 5"], "Album 5", 226.863)
    assert track.artist_ids == [contents.artists[5].artist_id] == [f"spotify:artist:R{5:021d}"]
    assert not contents.problems


def test_a_malformed_item_of_a_playlist_is_a_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    path = million(tmp_path / "lists.json", ["a", "b", "c"], 4)
    content = json.loads(path.read_text())
    first, second = content["playlists"][0]["tracks"], content["playlists"][1]
    first[0]["track_uri"] = "spotify:episode:x"
    first[1]["pos"] = None
    first[2] = "a song"
    second["tracks"] = None
    path.write_text(json.dumps(content))
    contents = read(path)
    assert len(contents.playlist_entries) == 1 + 4
    assert len(contents.problems) == 4
    assert "'spotify:episode:x' is not like spotify:track:ID" in contents.problems[0].detail
    assert {track.track_id for track in contents.tracks} >= {e.track_id for e in contents.playlist_entries}


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5), st.integers(0, 4))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_playlist_is_read_as_it_was_written(tmp_path: Path, names: list[str], tracks: int) -> None:
    contents = read(million(tmp_path / "lists.json", names, tracks))
    expected = [(name.strip(), place) for name in names for place in range(tracks)]
    assert [(entry.playlist, entry.position) for entry in contents.playlist_entries] == expected


def test_memory_does_not_grow_with_the_number_of_playlists(tmp_path: Path) -> None:
    peaks = []
    for playlists in (20, 60):
        source = ManifestSource(str(million(tmp_path / "lists.json", ["name"] * playlists, 100)))
        pages = list(source.pages())
        tracemalloc.start()
        sizes = [len(contents.tracks) for _, contents in source.read(pages)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (sum(sizes), max(sizes)) == (playlists * 100, ROWS_PER_PIECE)
    assert peaks[1] < 1.2 * peaks[0]


DEEP = "[" * 100_000 + "]" * 100_000
GOOD_LINES = [json.dumps(ROW), json.dumps(ROW | {"id": "9"})]
ODD_LINES = {
    "lone surrogate": json.dumps(ROW | {"title": "\ud83d"}),
    "surrogate in a list": json.dumps(ROW | {"genre": ["a", "\udc00"]}),
    "surrogate in the id": json.dumps(ROW | {"id": "\ud83d"}),
    "nested too deeply": DEEP,
    "nested deeply in a cell": json.dumps(ROW)[:-1] + ', "album": ' + "[" * 900 + "]" * 900 + "}",
    "not text": json.dumps(ROW | {"title": {"a": 1}}),
    "a number of 5000 digits": json.dumps(ROW)[:-1] + ', "duration": ' + "1" * 5000 + "}",
    "an infinite duration": json.dumps(ROW | {"duration": float("inf")}),
    "a bare word": "hello",
    "nothing but null": "null",
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_an_odd_line_is_one_problem_and_the_rest_is_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "songs.jsonl"
    path.write_text("\n".join([GOOD_LINES[0], line, GOOD_LINES[1]]) + "\n")
    assert_one_problem(path, "bad_row", f"row 2 of {path}: ")


def assert_one_problem(path: Path, kind: str, start: str) -> None:
    """The one problem of a manifest whose other rows are read, and which tables can hold."""
    contents = read(path)
    assert [track.track_id for track in contents.tracks] == ["manifest:007", "manifest:9"]
    (problem,) = contents.problems
    assert problem.kind == kind and problem.detail.startswith(start)
    source = ManifestSource(str(path))
    pages = pa.Table.from_pylist([asdict(page) for page in source.pages()])
    tables = list(read_batch(pages, source))
    assert sum(len(rows) for table in tables for rows in table["tracks"].to_pylist()) == 2


HEADER = "id,title,artist,url"
GOOD_ROWS = ["007,Röyksopp,A,http://x.test/7", '9,"A, ""B""\nC",A,http://x.test/9']


@pytest.mark.parametrize("row", [
    b'3,"Bad,A,http://x.test/3',  # as far as the next quote, or to the end of the file
    b'3,Song,A,"http://x.test/3',
    b'3,"Bad" Song,A,http://x.test/3',
    b"3,caf\xe9,A,http://x.test/3",
    b"3,\xed\xa0\xbd,A,http://x.test/3",  # a lone surrogate
    b"3,Song",
])  # fmt: skip
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_odd_row_of_csv_is_one_problem_and_the_rest_is_read(
    tmp_path: Path, row: bytes, place: int
) -> None:
    path = tmp_path / "songs.csv"
    rows = [text.encode() for text in GOOD_ROWS]
    path.write_bytes(b"\n".join([HEADER.encode(), *rows[:place], row, *rows[place:]]) + b"\n")
    assert_one_problem(path, "bad_row", f"row {place + 1} of {path}: ")


def test_a_quote_that_is_not_closed_costs_its_row_in_a_long_file(tmp_path: Path) -> None:
    lines = [f"{number},Song,A,http://x.test/{number}" for number in range(20_000)]
    lines[5] = '5,"Song,A,http://x.test/5'
    (tmp_path / "songs.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    contents = read(tmp_path / "songs.csv")
    assert (len(contents.tracks), len(contents.problems)) == (19_999, 1)
    assert (
        "row 6 of" in contents.problems[0].detail and "a quote is not closed" in contents.problems[0].detail
    )


@given(st.lists(st.sampled_from(['"', ",", "\n", "a", "\r", "é"]), max_size=60).map("".join))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_row_of_csv_the_row_after_the_next_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "songs.csv"
    path.write_text("\n".join([HEADER, text, "8,Song,A,http://x.test/8", GOOD_ROWS[1]]) + "\n", newline="")
    assert "manifest:9" in {track.track_id for track in read(path).tracks}


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=20)] * 2), max_size=5))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_is_read_as_it_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with (tmp_path / "songs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        writer.writerows([number, title, artist, "http://x"] for number, (title, artist) in enumerate(rows))
    contents = read(tmp_path / "songs.csv")
    expected = [title.strip() or str(number) for number, (title, _) in enumerate(rows)]
    assert [track.title for track in contents.tracks] == expected
    assert not contents.problems


def test_a_cell_of_parquet_that_is_not_utf8_is_one_problem(tmp_path: Path) -> None:
    rows = [
        ROW | {"title": b"R"},
        ROW | {"id": "8", "title": b"\xed\xa0\xbd"},
        ROW | {"id": "9", "title": b"S"},
    ]
    table = pa.Table.from_pylist(rows)
    title = table.schema.get_field_index("title")
    text = pa.chunked_array([pa.Array.from_buffers(pa.string(), 3, table["title"].chunk(0).buffers())])
    pa.parquet.write_table(table.set_column(title, "title", text), tmp_path / "songs.parquet")
    assert_one_problem(tmp_path / "songs.parquet", "bad_row", "row 2 of ")


def test_a_deeply_nested_track_of_a_playlist_is_one_problem(tmp_path: Path) -> None:
    path = million(tmp_path / "lists.json", ["a"], 3)
    nested = path.read_text().replace('"Song 1"', "[" * 5000 + "]" * 5000)
    path.write_text(nested.replace('"spotify:track:T000000000000000000001"', "[" * 5000 + "]" * 5000))
    contents = read(path)
    assert (len(contents.tracks), len(contents.problems)) == (2, 1)


def test_of_a_file_that_breaks_off_the_rows_before_the_break_are_read(tmp_path: Path) -> None:
    path = million(tmp_path / "lists.json", ["a", "b", "c"], 3)
    path.write_text(path.read_text()[:-400])
    contents = read(path)
    assert len(contents.tracks) == len(contents.playlist_entries) == 6
    assert [problem.kind for problem in contents.problems] == ["unreadable"]


def test_a_name_that_is_not_utf8_in_a_folder_of_manifests_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [ROW])
    os.close(os.open(os.fsencode(tmp_path) + b"/b\xff.csv", os.O_CREAT))
    os.mkfifo(tmp_path / "c.csv")
    (tmp_path / "d.csv").symlink_to("nowhere")
    contents = read(tmp_path)
    assert len(contents.tracks) == 1
    assert [problem.kind for problem in contents.problems] == ["bad_name"]


@pytest.mark.parametrize(("path", "expected"), [
    ("/etc/passwd", "s3://bucket/etc/passwd"),
    ("~/song.mp3", "s3://bucket/lists/~/song.mp3"),
    ("../song.mp3", "s3://bucket/song.mp3"),
    ("file:///etc/passwd", "file:///etc/passwd"),  # no URL that is fetched: see test_download.py
    ("http://x.test/1.mp3", "http://x.test/1.mp3"),
])  # fmt: skip
def test_a_path_in_a_manifest_from_a_url_names_no_file_of_this_machine(path: str, expected: str) -> None:
    track, _ = describe({"id": "1", "url": path}, "s3://bucket/lists/songs.csv")
    assert track.location == expected
