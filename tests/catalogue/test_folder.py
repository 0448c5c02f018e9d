from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import av
import mutagen
import pytest
from conftest import CLIPS, tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from songray.catalogue.sources.base import Contents, Track
from songray.catalogue.sources.folder import FolderSource

ODD = CLIPS.parent / "odd"


def read(folder: Path) -> list[Contents]:
    source = FolderSource(folder)
    return [contents for _, contents in source.read(list(source.pages()))]


def tracks(folder: Path) -> list[Track]:
    return [track for contents in read(folder) for track in contents.tracks]


def tag(path: Path, **values: str) -> None:
    file = mutagen.File(path, easy=True)
    if file.tags is None:
        file.add_tags()
    for name, value in values.items():
        file[name] = value
    file.save()


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg"])
def test_tags_describe_a_file_and_do_not_change_its_id(tmp_path: Path, suffix: str) -> None:
    path = tone(tmp_path / f"song.{suffix}")
    (bare,) = tracks(tmp_path)
    assert (bare.title, bare.artist_names) == ("song", [])
    tag(path, title="T", artist="A", album="B", date="1987-06", genre="Jazz")
    (track,) = tracks(tmp_path)
    assert track.track_id == bare.track_id
    assert (track.title, track.artist_names, track.album) == ("T", ["A"], "B")
    assert (track.release_date, track.release_date_precision) == ("1987-06", "month")
    assert track.genres == ["Jazz"]
    assert track.duration_seconds == pytest.approx(3.0, abs=0.1)
    assert track.location == str(path)


@pytest.mark.parametrize("key", ["Am", "no key"])
def test_tempo_key_and_license_are_read_from_tags(tmp_path: Path, key: str) -> None:
    path = tone(tmp_path / "song.flac")
    notice = "Somebody, https://creativecommons.org/licenses/by/4.0/."
    file = mutagen.File(path)
    file.update({"bpm": "97", "initialkey": key, "copyright": notice})
    file.save()
    (track,) = tracks(tmp_path)
    expected = ("A", "minor") if key == "Am" else (None, None)
    assert (track.tempo_bpm, track.key, track.mode) == (97.0, *expected)
    assert track.license == "https://creativecommons.org/licenses/by/4.0/"


def test_an_id_survives_a_move_and_differs_between_sounds(tmp_path: Path) -> None:
    first, second = tone(tmp_path / "a.mp3"), tone(tmp_path / "b.mp3", hertz=550)
    before = {track.title: track.track_id for track in tracks(tmp_path)}
    assert before["a"] != before["b"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.move(first, tmp_path / "deep" / "er" / "renamed.mp3")
    after = {track.title: track.track_id for track in tracks(tmp_path)}
    assert after == {"renamed": before["a"], "b": before["b"]}
    assert second.exists()


def test_a_page_changes_only_with_its_file(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.mp3")
    (before,) = FolderSource(tmp_path).pages()
    assert list(FolderSource(tmp_path).pages()) == [before]
    os.utime(path, (1, 1))
    assert list(FolderSource(tmp_path).pages()) != [before]


def test_files_without_tags_are_tracks_named_after_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.mp3").write_text("this is no music" * 100)
    (tmp_path / "notes.txt").write_text("of another type")
    (tmp_path / ".hidden.mp3").write_text("hidden")
    named = tracks(tmp_path)
    assert {track.title for track in named} == {"empty", "text"}
    assert len({track.track_id for track in named}) == 2


def test_a_missing_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="--folder /nowhere"):
        list(FolderSource(Path("/nowhere")).pages())


def problems(folder: Path) -> list[tuple[str, str]]:
    """Kind and file name of each problem."""
    found = [problem for contents in read(folder) for problem in contents.problems]
    return [(problem.kind, Path(problem.detail.split(": ")[0]).name) for problem in found]


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere.mp3")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_its_folder(path: Path) -> None:
    path.symlink_to(path.parent, target_is_directory=True)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def not_utf8(path: Path) -> None:
    os.close(os.open(os.fsencode(path.with_name("x")) + b"\xff.mp3", os.O_CREAT))


def not_utf8_folder(path: Path) -> None:
    folder = os.fsencode(path) + b"\xff"
    os.mkdir(folder)
    os.close(os.open(folder + b"/x.mp3", os.O_CREAT))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD_ENTRIES = [
    (broken_link, "broken_link", "x.mp3"), (link_to_itself, "broken_link", "x.mp3"),
    (link_to_its_folder, "linked_folder", "x.mp3"), (os.mkfifo, "not_a_file", "x.mp3"),
    (unix_socket, "not_a_file", "x.mp3"), (device, "not_a_file", "x.mp3"),
    (not_utf8, "bad_name", "x\\xff.mp3"), (not_utf8_folder, "bad_name", "x.mp3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "kind", "name"), ODD_ENTRIES, ids=lambda value: getattr(value, "__name__", "")
)
def test_an_entry_that_is_no_readable_file_is_a_problem_and_the_rest_is_read(
    tmp_path: Path, make: Callable[[Path], object], kind: str, name: str
) -> None:
    tone(tmp_path / "a.mp3", seconds=1)
    tone(tmp_path / "z.mp3", seconds=1, hertz=500)
    make(tmp_path / "x.mp3")
    assert [track.title for track in tracks(tmp_path)] == ["a", "z"]
    assert problems(tmp_path) == [(kind, name)]


@pytest.mark.parametrize("name", ["secret", "secret.mp3"])
def test_what_may_not_be_read_is_a_problem_until_it_may(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions are refused by hand, since they do not hold for root."""
    path = tmp_path / name
    path.mkdir() if name == "secret" else tone(path, seconds=1)
    tone((path if path.is_dir() else tmp_path) / "a.mp3", seconds=1, hertz=500)
    tone(tmp_path / "z.mp3", seconds=1, hertz=600)
    scandir, access = os.scandir, os.access

    def refuse(folder: str) -> object:
        if folder == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        patched.setattr(os, "access", lambda file, mode: file != str(path) and access(file, mode))
        before = {page.name: page.fingerprint for page in FolderSource(tmp_path).pages()}
        assert problems(tmp_path) == [("unreadable", name)]
        assert "z" in [track.title for track in tracks(tmp_path)]
    after = {page.name: page.fingerprint for page in FolderSource(tmp_path).pages()}
    assert before[str(path)] != after.get(str(path))
    assert not problems(tmp_path) and {"a", "z"} <= {track.title for track in tracks(tmp_path)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions_are_problems(tmp_path: Path) -> None:
    tone(tmp_path / "a.mp3", seconds=1).chmod(0)
    (tmp_path / "b").mkdir(mode=0)
    assert problems(tmp_path) == [("unreadable", "a.mp3"), ("unreadable", "b")]


def test_a_file_that_vanishes_before_it_is_read_is_left_to_the_next_crawl(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        tone(tmp_path / f"{name}.mp3", seconds=1, hertz=400 + 50 * number)
    source = FolderSource(tmp_path)
    pages = list(source.pages())
    (tmp_path / "b.mp3").unlink()
    contents = list(source.read(pages))
    assert [track.title for _, piece in contents for track in piece.tracks] == ["a", "c"]
    assert [problem.kind for _, piece in contents for problem in piece.problems] == ["unreadable"]
    assert {Path(page.name).stem for page, piece in contents if piece.finished} == {"a", "c"}


def test_names_of_255_bytes_and_folders_deeper_than_any_path_are_no_obstacle(tmp_path: Path) -> None:
    tone(tmp_path / f"{'é' * 125}x.mp3", seconds=1)
    assert [track.title for track in tracks(tmp_path)] == ["é" * 125 + "x"]
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("d" * 255)
            os.chdir("d" * 255)
    finally:
        os.chdir(before)
    assert len(tracks(tmp_path)) == 1
    assert [kind for kind, _ in problems(tmp_path)] == ["unreadable"]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", ".Trash-1000", "$RECYCLE.BIN", ".hidden"])
def test_folders_of_the_system_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / name, tmp_path / "album" / name):
        folder.mkdir(parents=True)
        tone(folder / "a.mp3", seconds=1)
    tone(tmp_path / "album" / "b.mp3", seconds=1, hertz=500)
    assert [track.title for track in tracks(tmp_path)] == ["b"]
    assert problems(tmp_path) == [("skipped_folder", name)] * 2


@pytest.mark.skipif(not ODD.is_dir(), reason=f"no odd files at {ODD}")
def test_tags_of_files_that_no_decoder_reads_and_of_ape_files_are_read() -> None:
    described = {Path(track.location or "").name: track for track in tracks(ODD)}
    for name, title, album in (
        ("test_rsrc_full.wma", "full", "the album"), ("test_rsrc_pure.wma", "the title", None),
        ("test_rsrc_full.ape", "full", "the album"),
    ):  # fmt: skip
        track = described[name]
        assert (track.title, track.artist_names, track.album) == (title, ["the artist"], album)
    assert described["test_rsrc_full.ape"].genres == ["the genre"]
    assert not problems(ODD)


def test_tags_of_formats_that_tinytag_does_not_read_are_read(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", seconds=1)
    with av.open(str(tmp_path / "a.wav")) as source, av.open(str(tmp_path / "b.wv"), "w", "wv") as target:
        target.metadata.update(title="T", artist="A", album="B", genre="G")
        stream = target.add_stream("wavpack", rate=22050, layout="mono")
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    described = {Path(track.location or "").name: track for track in tracks(tmp_path)}
    track = described["b.wv"]
    assert (track.title, track.artist_names, track.album, track.genres) == ("T", ["A"], "B", ["G"])
    assert track.duration_seconds == pytest.approx(1, abs=0.01)


HEADS = {
    "mp3": b"ID3\x03\0\0\0\0\x7f\x7f", "flac": b"fLaC", "ogg": b"OggS\0\x02", "wv": b"wvpk",
    "m4a": b"\0\0\0\x18ftypM4A ", "wma": bytes.fromhex("3026B2758E66CF11A6D900AA0062CE6C"),
}  # fmt: skip


@given(
    st.sampled_from(sorted(HEADS)),
    st.binary(max_size=300),
    st.integers(0, 2**32),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_contains_it_is_one_track(
    tmp_path: Path, suffix: str, content: bytes, size: int
) -> None:
    """Bytes after the start of a real format, which a parser of tags takes for sizes and positions."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(HEADS[suffix] + size.to_bytes(8, "little") + content)
    (page,) = FolderSource(tmp_path).pages()
    pieces = [piece for _, piece in FolderSource(tmp_path).read([page])]
    assert len([track for piece in pieces for track in piece.tracks]) == 1
    assert pieces[-1].finished
    path.unlink()
