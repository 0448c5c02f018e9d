"""A disk that is full, or read-only: an error in a sentence, and nothing half-written is taken for done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tone
from samples import add_previews, transform_error

from songray.errors import StorageError
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


def sounds(folder: Path) -> list[bytes]:
    return [tone(folder / "sound.wav", 1, 200 + 10 * number).read_bytes() for number in range(TRACKS)]


@pytest.mark.usefixtures("cluster")
def test_a_full_disk_is_a_sentence_and_loses_nothing(disk: Path, tmp_path: Path) -> None:
    library = Library.open(str(disk))
    add_previews(library, sounds(tmp_path))
    output = library.table("spectrograms", "default")
    filler = disk / "filler"
    filler.write_bytes(b"0" * (space(disk) - 60_000))
    error = transform_error(library)
    assert isinstance(error, StorageError) and "No space left on device" in str(error)
    keys = output.read(["track_key"])["track_key"].to_pylist()
    assert sorted(keys) == output.finished_keys().tolist()
    filler.unlink()
    assert transform_error(library) is None
    keys = output.read(["track_key"])["track_key"].to_pylist()
    assert sorted(keys) == output.finished_keys().tolist() == [number << 8 for number in range(TRACKS)]


def space(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize


def test_a_library_that_cannot_be_written_is_a_sentence(disk: Path, tmp_path: Path) -> None:
    library = Library.open(str(disk))
    add_previews(library, sounds(tmp_path))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    error = transform_error(library)
    assert isinstance(error, StorageError) and "Read-only file system" in str(error)
    assert str(error).startswith(f"the library cannot be used at {disk}/")
