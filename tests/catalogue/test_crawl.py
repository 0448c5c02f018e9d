from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tone
from fakes import served
from fakes.deezer import FakeDeezer

from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.folder import FolderSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.library import Library

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("cluster")


def manifest(path: Path, *rows: str) -> ManifestSource:
    path.write_text("\n".join(["id,title,artist,url,genre", *rows]) + "\n")
    return ManifestSource(str(path))


def titles(library: Library) -> dict[str, str]:
    rows = library.table("tracks").newest(["track_id", "title"]).to_pylist()
    return {row["track_id"]: row["title"] for row in rows}


def test_a_second_crawl_reads_what_has_changed_and_nothing_else(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "songs.csv"
    source = manifest(path, "1,One,A,http://x.test/1,jazz", "2,Two,B,http://x.test/2,funk", "3,,,,")
    first = crawl(library, source, CrawlConfig())
    assert (first.counts["new"], first.counts["read"], first.problems["bad_row"]) == (2, 1, 1)
    again = crawl(library, source, CrawlConfig())
    assert (again.counts["read"], again.counts["before"]) == (0, 1)
    manifest(
        path, "1,Uno,A,http://x.test/1,jazz", "2,Two,B,http://x.test/2b,funk", "4,Four,A,http://x.test/4,"
    )
    changed = crawl(library, source, CrawlConfig())
    assert (changed.counts["new"], changed.counts["changed"], changed.counts["unchanged"]) == (1, 2, 0)
    assert titles(library) == {"manifest:1": "Uno", "manifest:2": "Two", "manifest:4": "Four"}
    rows = library.table("tracks").newest(["track_id", "revision"]).to_pylist()
    revisions = {row["track_id"]: row["revision"] for row in rows}  # only another sound makes one
    assert revisions == {"manifest:1": 0, "manifest:2": 1, "manifest:4": 0}
    artists = library.table("artists").read()["name"].to_pylist()
    assert sorted(artists) == ["A", "B"]


def test_the_fullest_of_several_descriptions_counts(library: Library, tmp_path: Path) -> None:
    for name, artist in (("1", ""), ("2", "Ada"), ("3", "")):
        manifest(tmp_path / f"{name}.csv", f"1,Song,{artist},http://x.test/1,")
    summary = crawl(library, ManifestSource(str(tmp_path)), CrawlConfig())
    assert (summary.counts["new"], summary.counts["completed"], summary.counts["duplicate"]) == (1, 1, 1)
    tracks = library.table("tracks")
    assert tracks.newest(["artist_names"]).to_pylist() == [{"artist_names": ["Ada"]}]
    assert len(tracks.read(["track_key"])) == len(tracks.files())  # a file holds a key once


def test_a_moved_file_is_the_same_track_at_another_place(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    tone(folder / "a.mp3")
    shutil.copy(tone(folder / "b.mp3", hertz=500), folder / "copy of b.mp3")
    source = FolderSource(folder)
    first = crawl(library, source, CrawlConfig())
    assert (first.counts["new"], first.counts["duplicate"]) == (2, 1)
    (folder / "a.mp3").rename(folder / "moved.mp3")
    second = crawl(library, source, CrawlConfig())
    assert (second.counts["read"], second.counts["changed"], second.counts["new"]) == (1, 1, 0)
    rows = library.table("tracks").newest(["track_id", "location", "revision"]).to_pylist()
    assert len(rows) == 2
    assert sorted(row["revision"] for row in rows) == [0, 1]  # what refers to the old place is made anew
    assert str(folder / "moved.mp3") in {row["location"] for row in rows}


def test_a_growing_catalogue_adds_its_new_songs(library: Library) -> None:
    assert crawl(library, SyntheticSource(songs=250), CrawlConfig()).counts["new"] == 250
    grown = crawl(library, SyntheticSource(songs=350), CrawlConfig())
    assert (grown.counts["new"], grown.counts["unchanged"]) == (100, 50)
    assert grown.counts["before"] == 2  # full pages are not read again
    tracks = set(titles(library))
    assert len(tracks) == 350
    assert set(library.table("playlists").read()["track_id"].to_pylist()) <= tracks
    assert set(library.table("playlists").read()["position"].to_pylist()) >= {0, 1, 2}


def test_a_crawl_of_what_is_not_there_says_so(library: Library) -> None:
    with pytest.raises(ValueError, match="--folder"):
        crawl(library, FolderSource(), CrawlConfig())


@pytest.mark.slow
def test_a_crawl_that_was_killed_goes_on_from_what_it_has_stored(library: Library) -> None:
    fake = FakeDeezer(artists=200)
    with served(fake.application()) as url:
        api = ("--deezer-url", url, "--deezer-requests-per-second", "100")
        source = ("deezer", "--artists", "1", "--max-depth", "50", *api)
        command = [sys.executable, "jobs/crawl.py", *source, "--library", library.root]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pages = library.table("pages")
        while len(stored := pages.read(["page"])) < 100:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.wait()
        stored = set(pages.read(["page"])["page"].to_pylist())
        killed_at = time.time()
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = {path.split("?")[0].strip("/") for at, path in fake.faults.requests if at > killed_at}
    assert not paths & stored
    names = pages.read(["page"])["page"].to_pylist()
    assert len(names) == len(set(names)) == 400
    assert f"{len(stored)} read before" in output
    artists = library.table("artists").read(["artist_id"])["artist_id"].to_pylist()
    assert len(artists) == len(set(artists)) == 200
