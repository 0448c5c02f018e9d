"""A disk that is full, or read-only: an error in a sentence, and nothing half-written is taken for done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import tone

from songray.audio.transform import TransformConfig, transform
from songray.errors import SongrayError, StorageError, songray_error
from songray.library import Library

TRACKS = 32


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def add_previews(library: Library, folder: Path) -> None:
    sounds = [tone(folder / "sound.wav", 1, 200 + 10 * number).read_bytes() for number in range(TRACKS)]
    rows = [
        {"track_key": number << 8, "track_id": f"a:{number}", "audio": sound}
        for number, sound in enumerate(sounds)
    ]
    previews = library.table("previews")
    previews.append(pa.Table.from_pylist(rows, previews.schema()), "first")


def failure(library: Library) -> SongrayError | None:
    try:
        transform(library, TransformConfig(rows_per_file=16))
    except Exception as error:
        return songray_error(error)
    return None


@pytest.mark.usefixtures("cluster")
def test_a_full_disk_is_a_sentence_and_loses_nothing(disk: Path, tmp_path: Path) -> None:
    library = Library.open(str(disk))
    add_previews(library, tmp_path)
    output = library.table("spectrograms", "default")
    filler = disk / "filler"
    filler.write_bytes(b"0" * (space(disk) - 60_000))
    error = failure(library)
    assert isinstance(error, StorageError) and "No space left on device" in str(error)
    keys = output.read(["track_key"])["track_key"].to_pylist()
    assert sorted(keys) == output.finished_keys().tolist()
    filler.unlink()
    assert failure(library) is None
    keys = output.read(["track_key"])["track_key"].to_pylist()
    assert sorted(keys) == output.finished_keys().tolist() == [number << 8 for number in range(TRACKS)]


def space(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize


def test_a_library_that_cannot_be_written_is_a_sentence(disk: Path, tmp_path: Path) -> None:
    library = Library.open(str(disk))
    add_previews(library, tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    error = failure(library)
    assert isinstance(error, StorageError) and "Read-only file system" in str(error)
    assert str(error).startswith(f"the library cannot be used at {disk}/")
