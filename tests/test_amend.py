from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import tone

from songray import amend
from songray.amend import RemoveConfig, ReviseConfig, remove, revise
from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.errors import InvalidOption
from songray.library import Library
from songray.table import Table

pytestmark = pytest.mark.usefixtures("cluster")


def manifest(folder: Path, names: str) -> ManifestSource:
    lines = [f"{name},{name},{name}.wav" for name in names]
    (folder / "songs.csv").write_text("\n".join(["id,title,url", *lines]) + "\n")
    return ManifestSource(str(folder / "songs.csv"))


def ids(library: Library, *table: str) -> set[str]:
    return {track.removeprefix("manifest:") for track in library.table(*table).read()["track_id"].to_pylist()}


def test_a_removed_track_is_in_no_table_and_later_crawls_skip_it(library: Library, tmp_path: Path) -> None:
    for number, name in enumerate("abcd"):
        tone(tmp_path / f"{name}.wav", hertz=300 + 100 * number)
    crawl(library, manifest(tmp_path, "abcd"), CrawlConfig())
    download(library, DownloadConfig())
    transform(library, TransformConfig())
    summary = remove(library, RemoveConfig(("manifest:b", "manifest:zzz"), reason="takedown"))
    assert "spectrograms/default 1, previews 1, tracks 1" in summary
    for table in (("tracks",), ("previews",), ("spectrograms", "default")):
        assert ids(library, *table) == set("acd")
    (tmp_path / "songs.csv").unlink()
    again = crawl(library, manifest(tmp_path, "abcde"), CrawlConfig())
    assert (again.counts["removed"], again.counts["new"]) == (1, 1)
    assert ids(library, "tracks") == set("acde")
    assert library.table("removed").read()["reason"].to_pylist() == ["takedown"] * 2
    assert "rows removed: none" in remove(library, RemoveConfig(("manifest:b",)))


def test_a_removal_that_was_killed_can_be_started_again(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of `tracks`, which have the numbers of the tracks, go last."""
    tone(tmp_path / "a.wav")
    crawl(library, manifest(tmp_path, "a"), CrawlConfig())
    download(library, DownloadConfig())

    def killed(table: Table, *arguments: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(amend, "remove_from", killed)
        remove(library, RemoveConfig(("manifest:a",)))
    assert ids(library, "tracks") == ids(library, "previews") == {"a"}
    assert "previews 1, tracks 1" in remove(library, RemoveConfig(("manifest:a",)))
    assert ids(library, "tracks") == ids(library, "previews") == set()


def test_permanent_failures_are_processed_again_on_request(library: Library, tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "b.wav").touch()
    crawl(library, manifest(tmp_path, "ab"), CrawlConfig())
    first = download(library, DownloadConfig())
    assert (first.done, first.failed) == (1, {"empty": 1})
    tone(tmp_path / "b.wav")
    with pytest.raises(InvalidOption, match="the failures in previews are: empty"):
        revise(library, ReviseConfig(("http_404",)))
    assert "1 tracks" in revise(library, ReviseConfig(("empty",)))
    second = download(library, DownloadConfig())
    assert (second.existing, second.done, second.failed.total()) == (1, 1, 0)
    unchanged = crawl(library, manifest(tmp_path, "ab"), replace(CrawlConfig(), refresh=True))
    assert unchanged.counts["changed"] == 0
    rows = library.table("tracks").newest(["track_id", "revision"]).rows.to_pylist()
    assert {row["track_id"]: row["revision"] for row in rows} == {"manifest:a": 0, "manifest:b": 1}


def test_a_track_that_has_had_all_revisions_is_processed_again_under_another_number(
    library: Library, tmp_path: Path
) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "b.wav").touch()
    crawl(library, manifest(tmp_path, "ab"), CrawlConfig())
    tracks = library.table("tracks")
    rows = [row | {"revision": 255, "track_key": row["track_key"] | 255} for row in tracks.read().to_pylist()]
    tracks.delete(tracks.files())
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), "000001")
    assert download(library, DownloadConfig()).failed == {"empty": 1}
    tone(tmp_path / "b.wav", hertz=300)
    assert "1 tracks have a new revision" in revise(library, ReviseConfig(("empty",)))
    assert download(library, DownloadConfig()).done == 1
    assert transform(library, TransformConfig()).done == 2
    keys = {
        row["track_id"]: row["track_key"] for row in tracks.newest(["track_id", "track_key"]).rows.to_pylist()
    }
    expected = {row["track_id"]: row["track_key"] for row in rows}
    assert keys == expected | {"manifest:b": expected["manifest:b"] + 1}  # the next number, at revision 0
    remove(library, RemoveConfig(("manifest:b",)))
    assert (
        ids(library, "tracks") == ids(library, "previews") == ids(library, "spectrograms", "default") == {"a"}
    )
