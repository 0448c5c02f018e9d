from __future__ import annotations

import os
import shutil
from pathlib import Path

import mutagen
import pytest
from conftest import tone

from songray.catalogue.sources.base import Contents, Track
from songray.catalogue.sources.folder import FolderSource


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
