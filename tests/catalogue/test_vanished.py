"""Files that were crawled and that their folder no longer has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import tone

from songray.amend import RemoveConfig, remove
from songray.catalogue.crawl import CrawlConfig, CrawlSummary, crawl
from songray.catalogue.sources.folder import FolderSource
from songray.library import Library, Row
from songray.search.target import lowest_tracks

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two songs, one of them twice, and one in a folder of its own."""
    folder = tmp_path / "music"
    (folder / "album").mkdir(parents=True)
    tone(folder / "a.mp3", seconds=1)
    shutil.copy(tone(folder / "b.mp3", seconds=1, hertz=500), folder / "copy of b.mp3")
    tone(folder / "album" / "c.mp3", seconds=1, hertz=600)
    return folder


def crawled(library: Library, folder: Path, **options: int) -> CrawlSummary:
    return crawl(library, FolderSource(folder), CrawlConfig(**options))


def newest(library: Library) -> dict[str, Row]:
    """The newest row of each track by its title."""
    tracks = library.table("tracks")
    return {row["title"]: row for row in tracks.newest(tracks.schema().names).rows.to_pylist()}


def indexed(library: Library) -> set[str]:
    """Titles of the tracks that an index should contain, where each that was ever crawled has a vector."""
    keys = np.unique(library.table("tracks").read(["track_key"])["track_key"].to_numpy())
    embeddings = library.table("embeddings", "run")
    embeddings.delete(embeddings.files())
    embeddings.append(pa.table({"track_key": keys, "track_id": keys.astype(str)}), "000001")
    of_target = set(lowest_tracks(library, "run", 1000).rows["track_key"].tolist())
    return {title for title, row in newest(library).items() if row["track_key"] in of_target}


def test_a_deleted_file_is_no_longer_indexed_until_it_is_back(library: Library, folder: Path) -> None:
    crawled(library, folder)
    shutil.move(folder / "a.mp3", folder.parent / "a.mp3")
    summary = crawled(library, folder)
    assert (summary.counts["gone"], summary.counts["read"]) == (1, 0)
    assert "1 gone" in str(summary)
    assert indexed(library) == {"b", "c"}
    assert crawled(library, folder).counts["gone"] == 0
    shutil.move(folder.parent / "a.mp3", folder / "a.mp3")  # with its time of modification
    assert crawled(library, folder).counts["changed"] == 1
    assert indexed(library) == {"a", "b", "c"}
    assert {row["revision"] for row in newest(library).values()} == {0}  # nothing is computed again


def test_of_equal_files_one_is_left_until_the_last_is_deleted(library: Library, folder: Path) -> None:
    crawled(library, folder)
    (folder / "b.mp3").unlink()
    counts = crawled(library, folder).counts
    assert (counts["gone"], counts["read"], counts["changed"]) == (0, 1, 1)
    assert newest(library)["copy of b"]["location"] == str(folder / "copy of b.mp3")
    assert indexed(library) == {"a", "copy of b", "c"}
    (folder / "copy of b.mp3").unlink()
    assert crawled(library, folder).counts["gone"] == 1
    assert indexed(library) == {"a", "c"}


def test_deleting_the_copy_of_a_file_changes_nothing(library: Library, folder: Path) -> None:
    crawled(library, folder)
    (folder / "copy of b.mp3").unlink()
    counts = crawled(library, folder).counts
    assert (counts["gone"], counts["changed"]) == (0, 0)
    assert indexed(library) == {"a", "b", "c"}


def test_a_moved_file_is_not_gone(library: Library, folder: Path) -> None:
    crawled(library, folder)
    (folder / "a.mp3").rename(folder / "album" / "a.mp3")
    counts = crawled(library, folder).counts
    assert (counts["gone"], counts["changed"]) == (0, 1)
    assert indexed(library) == {"a", "b", "c"}


def test_what_a_crawl_cannot_tell_is_not_gone(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that cannot be listed, in one whose drive is not mounted, in one of another crawl; nor
    after a crawl that a limit stopped."""
    crawled(library, folder)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path == str(folder / "album"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        assert crawled(library, folder).counts["gone"] == 0
    folder.rename(folder.parent / "unmounted")
    folder.mkdir()
    assert crawled(library, folder).counts["gone"] == 0
    other = folder.parent / "other"
    other.mkdir()
    tone(other / "d.mp3", seconds=1, hertz=700)
    assert crawled(library, other).counts["gone"] == 0
    tone(folder / "e.mp3", seconds=1, hertz=800)
    assert crawled(library, folder, max_tracks=1).counts["gone"] == 0
    assert indexed(library) == {"a", "b", "c", "d", "e"}
    assert crawled(library, folder).counts["gone"] == 3


def test_all_pages_of_a_removed_track_are_removed(library: Library, folder: Path) -> None:
    crawled(library, folder)
    remove(library, RemoveConfig(tracks=(newest(library)["b"]["track_id"],)))
    names = library.table("pages").read(["page"])["page"].to_pylist()
    assert sorted(names) == [str(folder / "a.mp3"), str(folder / "album" / "c.mp3")]
    (folder / "b.mp3").unlink()
    assert crawled(library, folder).counts == {"read": 1, "removed": 1, "existing": 2}
