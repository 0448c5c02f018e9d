from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import tone
from fakes import served
from fakes.deezer import FakeDeezer

from songray.catalogue import existing
from songray.catalogue.crawl import CrawlConfig, CrawlSummary, crawl
from songray.catalogue.sources.folder import FolderSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.errors import StageFailed
from songray.keys import LAST_REVISION, NUMBERS, REVISION_BITS, hash64
from songray.library import Library

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("cluster")


def manifest(path: Path, *rows: str) -> ManifestSource:
    path.write_text("\n".join(["id,title,artist,url,genre", *rows]) + "\n")
    return ManifestSource(str(path))


def titles(library: Library) -> dict[str, str]:
    rows = library.table("tracks").newest(["track_id", "title"]).rows.to_pylist()
    return {row["track_id"]: row["title"] for row in rows}


def revisions(library: Library) -> dict[str, int]:
    rows = library.table("tracks").newest(["track_id", "revision"]).rows.to_pylist()
    return {row["track_id"]: row["revision"] for row in rows}


def test_a_second_crawl_reads_only_what_has_changed(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "songs.csv"
    source = manifest(path, "1,One,A,http://x.test/1,jazz", "2,Two,B,http://x.test/2,funk", "3,,,,")
    first = crawl(library, source, CrawlConfig())
    assert (first.counts["new"], first.counts["read"], first.problems["bad_row"]) == (2, 1, 1)
    again = crawl(library, source, CrawlConfig())
    assert (again.counts["read"], again.counts["existing"]) == (0, 1)
    manifest(
        path, "1,Uno,A,http://x.test/1,jazz", "2,Two,B,http://x.test/2b,funk", "4,Four,A,http://x.test/4,"
    )
    changed = crawl(library, source, CrawlConfig())
    assert (changed.counts["new"], changed.counts["changed"], changed.counts["unchanged"]) == (1, 2, 0)
    assert titles(library) == {"manifest:1": "Uno", "manifest:2": "Two", "manifest:4": "Four"}
    assert revisions(library) == {"manifest:1": 0, "manifest:2": 1, "manifest:4": 0}  # only by new audio
    artists = library.table("artists").read()["name"].to_pylist()
    assert sorted(artists) == ["A", "B"]


def test_the_most_complete_of_repeated_descriptions_counts(library: Library, tmp_path: Path) -> None:
    for name, artist in (("1", ""), ("2", "Ada"), ("3", "")):
        manifest(tmp_path / f"{name}.csv", f"1,Song,{artist},http://x.test/1,")
    summary = crawl(library, ManifestSource(str(tmp_path)), CrawlConfig())
    assert (summary.counts["new"], summary.counts["completed"], summary.counts["duplicate"]) == (1, 1, 1)
    tracks = library.table("tracks")
    assert tracks.newest(["artist_names"]).rows.to_pylist() == [{"artist_names": ["Ada"]}]
    assert len(tracks.read(["track_key"])) == len(tracks.files())  # a file contains a key once


def test_problems_are_counted_by_kind_with_an_example_and_stored_beside_their_page(
    library: Library, tmp_path: Path
) -> None:
    path = tmp_path / "songs.csv"
    summary = crawl(library, manifest(path, "1,One,A,http://x.test/1,", ",,,,", "2,,,,"), CrawlConfig())
    assert summary.problems == {"bad_row": 2}
    assert f"\n  2 × bad_row: row 2 of {path}: needs id and url" in str(summary)
    (problems,) = library.table("pages").read(["page_problems"])["page_problems"].to_pylist()
    assert [problem["kind"] for problem in problems] == ["bad_row", "bad_row"]
    assert problems[1]["detail"].startswith(f"row 3 of {path}: needs id and url")


def rewrite_in_former_format(library: Library) -> None:
    """Completeness and the hash of the id in bits of checksums, and problems as text."""
    tracks, pages = library.table("tracks"), library.table("pages")
    rows = tracks.read()
    columns = {name: rows[name].to_pylist() for name in ("checksum", "completeness", "audio_checksum")}
    hashes = [hash64("id", track_id) >> 32 << 32 for track_id in rows["track_id"].to_pylist()]
    checksums = [
        checksum | count for checksum, count in zip(columns["checksum"], columns["completeness"], strict=True)
    ]
    audio = [upper | lower for upper, lower in zip(hashes, columns["audio_checksum"], strict=True)]
    former = {name: rows[name] for name in rows.column_names if name not in ("id_hash", "completeness")}
    former |= {"checksum": pa.array(checksums), "audio_checksum": pa.array(audio)}
    problems = pages.read().drop_columns("page_problems")
    problems = problems.append_column("problems", pa.array([["bad_row: row 4"]] * len(problems)))
    for table, content in ((tracks, pa.table(former)), (pages, problems)):
        table.delete(table.files())
        table.append(content, "000001")


def test_a_crawl_of_a_library_of_an_earlier_version_compares_with_its_rows(
    library: Library, tmp_path: Path
) -> None:
    path = tmp_path / "songs.csv"
    crawl(library, manifest(path, "1,One,A,http://x.test/1,jazz", "2,Two,B,http://x.test/2,"), CrawlConfig())
    rewrite_in_former_format(library)
    assert crawl(library, ManifestSource(str(path)), CrawlConfig()).counts["existing"] == 1
    rows = "2,Two,B,http://x.test/2b,", "1,One,A,http://x.test/1,jazz"
    counts = crawl(library, manifest(path, *rows), CrawlConfig()).counts
    assert (counts["new"], counts["changed"], counts["unchanged"]) == (0, 1, 1)
    assert revisions(library) == {"manifest:1": 0, "manifest:2": 1}
    tracks = library.table("tracks").newest(["track_id", "completeness"]).rows.to_pylist()
    assert len({row["completeness"] for row in tracks}) == 2


@pytest.fixture(params=[1000, NUMBERS - 1])
def one_number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """All ids have the same number; behind the last of all numbers follows the first."""
    monkeypatch.setattr(existing, "track_number", lambda track_id: request.param)
    yield request.param


def numbers(library: Library) -> dict[str, int]:
    rows = library.table("tracks").newest(["track_id", "track_key"]).rows.to_pylist()
    return {row["track_id"]: row["track_key"] >> REVISION_BITS for row in rows}


def test_ids_with_the_same_number_get_keys_of_their_own_and_keep_them(
    library: Library, tmp_path: Path, one_number: int
) -> None:
    rows = ["1,One,A,http://x.test/1,", "2,Two,A,http://x.test/2,", "3,Three,A,http://x.test/3,"]
    path = tmp_path / "songs.csv"
    assert crawl(library, manifest(path, *rows), CrawlConfig()).counts["new"] == 3
    expected = {f"manifest:{name}": (one_number + name - 1) % NUMBERS for name in (1, 2, 3)}
    assert numbers(library) == expected
    changed = "3,Tres,A,http://x.test/3,", "2,Two,A,http://x.test/2b,", "4,Four,A,http://x.test/4,", rows[0]
    counts = crawl(library, manifest(path, *changed), CrawlConfig()).counts
    assert (counts["new"], counts["changed"], counts["unchanged"]) == (1, 2, 1)
    assert numbers(library) == expected | {"manifest:4": (one_number + 3) % NUMBERS}
    assert titles(library)["manifest:3"] == "Tres"
    assert revisions(library) == {"manifest:1": 0, "manifest:2": 1, "manifest:3": 0, "manifest:4": 0}


def test_a_track_keeps_its_key_where_another_with_its_number_was_removed(
    library: Library, tmp_path: Path, one_number: int
) -> None:
    path = tmp_path / "songs.csv"
    rows = ["1,One,A,http://x.test/1,", "2,Two,A,http://x.test/2,"]
    crawl(library, manifest(path, *rows), CrawlConfig())
    tracks = library.table("tracks")
    kept = tracks.read().slice(1)
    tracks.delete(tracks.files())
    tracks.append(kept, "000001")
    counts = crawl(library, manifest(path, "2,Due,A,http://x.test/2,"), CrawlConfig()).counts
    assert (counts["new"], counts["changed"]) == (0, 1)
    assert numbers(library) == {"manifest:2": (one_number + 1) % NUMBERS}


def revise_to_the_last(library: Library, track_id: str) -> None:
    """Store a track as it is after its last revision."""
    tracks = library.table("tracks")
    rows = tracks.read().to_pylist()
    for row in rows:
        if row["track_id"] == track_id:
            row |= {"revision": LAST_REVISION, "track_key": row["track_key"] | LAST_REVISION}
    tracks.delete(tracks.files())
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), "000001")


def test_a_track_that_has_had_all_revisions_goes_on_under_another_number(
    library: Library, tmp_path: Path, one_number: int
) -> None:
    path = tmp_path / "songs.csv"
    rows = ["1,One,A,http://x.test/1,", "2,Two,A,http://x.test/2,"]
    crawl(library, manifest(path, *rows), CrawlConfig())
    revise_to_the_last(library, "manifest:1")
    counts = crawl(library, manifest(path, "1,Uno,A,http://x.test/1,", rows[1]), CrawlConfig()).counts
    assert (counts["changed"], revisions(library)["manifest:1"]) == (1, LAST_REVISION)  # the same audio
    counts = crawl(library, manifest(path, "1,Uno,A,http://x.test/1b,", rows[1]), CrawlConfig()).counts
    assert (counts["changed"], counts["unchanged"]) == (1, 1)
    assert revisions(library) == {"manifest:1": 0, "manifest:2": 0}
    expected = {"manifest:1": (one_number + 2) % NUMBERS, "manifest:2": (one_number + 1) % NUMBERS}
    assert numbers(library) == expected
    rows = ["1,Ein,A,http://x.test/1c,", "3,Three,A,http://x.test/3,", rows[1]]
    counts = crawl(library, manifest(path, *rows), CrawlConfig()).counts
    assert (counts["changed"], counts["new"]) == (1, 1)
    assert numbers(library) == expected | {"manifest:3": (one_number + 3) % NUMBERS}  # none that was left
    assert (titles(library)["manifest:1"], revisions(library)["manifest:1"]) == ("Ein", 1)


def test_a_track_without_a_key_is_a_problem_and_the_others_are_stored(
    library: Library, tmp_path: Path, one_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(existing, "MAX_PROBES", 2)
    path = tmp_path / "songs.csv"
    rows = [f"{n},Song {n},A,http://x.test/{n}," for n in range(3)]
    summary = crawl(library, manifest(path, *rows), CrawlConfig())
    assert (summary.counts["new"], summary.problems) == (2, {"no_key": 1})
    assert "the 2 numbers that manifest:2 may have are taken" in str(summary)
    (problems,) = library.table("pages").read(["page_problems"])["page_problems"].to_pylist()
    assert [problem["kind"] for problem in problems] == ["no_key"]
    revise_to_the_last(library, "manifest:0")
    again = crawl(
        library, manifest(path, "0,Song,A,http://x.test/0b,", "1,Due,A,http://x.test/1,"), CrawlConfig()
    )
    assert (again.counts["changed"], again.problems) == (1, {"no_key": 1})
    assert titles(library) == {"manifest:0": "Song 0", "manifest:1": "Due"}


def test_a_moved_file_is_the_same_track_at_another_path(library: Library, tmp_path: Path) -> None:
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
    assert sorted(revisions(library).values()) == [0, 1]  # previews that refer to the old path are replaced
    locations = library.table("tracks").newest(["location"]).rows["location"].to_pylist()
    assert len(locations) == 2
    assert str(folder / "moved.mp3") in locations


def test_a_growing_catalogue_adds_its_new_songs(library: Library) -> None:
    assert crawl(library, SyntheticSource(songs=250), CrawlConfig()).counts["new"] == 250
    grown = crawl(library, SyntheticSource(songs=350), CrawlConfig())
    assert (grown.counts["new"], grown.counts["unchanged"]) == (100, 50)
    assert grown.counts["existing"] == 2  # full pages are not read again
    tracks = set(titles(library))
    assert len(tracks) == 350
    assert set(library.table("playlists").read()["track_id"].to_pylist()) <= tracks
    assert set(library.table("playlists").read()["position"].to_pylist()) >= {0, 1, 2}


def test_a_limit_stops_the_crawl_and_the_next_one_continues(library: Library) -> None:
    source = SyntheticSource(songs=350)
    first = crawl(library, source, CrawlConfig(max_requests=1))
    assert (first.counts["read"], first.counts["new"], first.stopped_by) == (1, 100, "--max-requests 1")
    rest = crawl(library, source, CrawlConfig())
    assert (rest.counts["read"], rest.counts["existing"], rest.counts["new"]) == (3, 1, 250)


def test_one_page_that_fails_among_many_that_were_read_before_stops_nothing() -> None:
    CrawlSummary("folder", Counter(retryable=1, existing=1000)).check(0.5)
    with pytest.raises(StageFailed, match="1 of 1 pages of folder failed"):
        CrawlSummary("folder", Counter(retryable=1)).check(0.5)
    with pytest.raises(StageFailed, match="100 of 150 pages"):
        CrawlSummary("folder", Counter(retryable=100, read=50, existing=1000)).check(0.5)


def test_a_crawl_of_a_missing_folder_is_refused(library: Library) -> None:
    with pytest.raises(ValueError, match="--folder"):
        crawl(library, FolderSource(), CrawlConfig())


CRAWL_WITHOUT_RAY = """
import sys
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.library import Library
print(crawl(Library.open(sys.argv[1]), ManifestSource(sys.argv[2]), CrawlConfig()).counts["existing"])
print("ray" in sys.modules)
"""


def test_a_crawl_without_a_page_to_read_does_not_load_ray(library: Library, tmp_path: Path) -> None:
    source = manifest(tmp_path / "songs.csv", "1,One,A,http://x.test/1,jazz")
    crawl(library, source, CrawlConfig())
    command = [sys.executable, "-c", CRAWL_WITHOUT_RAY, library.root, str(source.manifest)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["1", "False"]


@pytest.mark.slow
def test_a_killed_crawl_continues_from_the_pages_that_it_has_stored(library: Library) -> None:
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
    related = library.table("related_artists").read(["artist_id", "related_id"]).to_pylist()
    pairs = {(pair["artist_id"], pair["related_id"]) for pair in related}
    assert len(pairs) == sum(len(fake.related(number)) for number in range(1, 201))
