"""After a removal nothing in a library holds the track: every file is read, as it is and decoded."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet
import pytest
from conftest import tone
from test_checkpoints import Died, Observed, Steps

from songray.amend import RemoveConfig, remove
from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.folder import FolderSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.checkpoints import PENDING_SUFFIX
from songray.errors import Conflict
from songray.keys import REVISION_BITS, KeySet
from songray.learning.embed import EmbedConfig, embed
from songray.learning.factorize import FactorizeConfig, factorize
from songray.learning.models import MODELS
from songray.learning.runs import split_path
from songray.learning.split import Split, without
from songray.learning.train import TrainConfig, train
from songray.library import Library
from songray.search import erase
from songray.search.build import IndexConfig, index
from songray.search.project import ProjectConfig, project
from songray.search.version import newest_version
from songray.storage import list_files
from songray.tables import TABLES
from songray.takedown import Takedown
from songray.takedown import without as rows_without

TITLE, DERIVED, SONGS = "zyxwvut zaphod", "quuxly quark", 14
FIRST = 6  # numbers of a vector that are searched for


@dataclass(frozen=True)
class Removed:
    """What is searched for."""

    track_id: str
    path: str
    number: int
    vectors: list[np.ndarray]  # its own, and that of another track with its audio
    derived: int  # the key of that track

    @property
    def texts(self) -> list[bytes]:
        return [text.casefold().encode() for text in (self.track_id, self.path, TITLE.split()[0])]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> tuple[Library, Removed]:
    """A library with everything that the stages write, and two versions of its index."""
    library = Library.open(str(tmp_path_factory.mktemp("takedown") / "library"))
    music = Path(library.root).parent / "music"
    music.mkdir()
    titles = [TITLE, DERIVED, *(f"song {number}" for number in range(SONGS))]
    for number, title in enumerate(titles[:-1]):
        tone(music / f"{title}.wav", hertz=200 + 37 * number)
    crawl(library, FolderSource(music), CrawlConfig())
    rows = library.table("tracks").read(["track_id", "title", "track_key"]).to_pylist()
    by_title = {row["title"]: row for row in rows}
    playlists = ["playlist,position,track"]
    playlists += [f"p{p},{place},{row['track_id']}" for p in range(3) for place, row in enumerate(rows)]
    manifest = music.parent / "playlists.csv"
    manifest.write_text("\n".join(playlists) + "\n")
    crawl(library, ManifestSource(str(manifest)), CrawlConfig())
    download(library, DownloadConfig())
    give_audio_of(library, by_title[DERIVED]["track_id"], by_title[TITLE]["track_id"])
    run = train_and_index(library)
    tone(music / f"{titles[-1]}.wav", hertz=999)
    crawl(library, FolderSource(music), CrawlConfig())
    download(library, DownloadConfig())
    transform(library, TransformConfig())
    embed(library, EmbedConfig(run=run, actors=1))
    index(library, IndexConfig(run=run, links=8))
    judge(library, [row["track_id"] for row in by_title.values()])
    embeddings = library.table("embeddings", run).read()
    vectors = {row["track_key"]: np.array(row["embedding"], np.float32) for row in embeddings.to_pylist()}
    keys = [by_title[title]["track_key"] for title in (TITLE, DERIVED)]
    removed = Removed(
        track_id=by_title[TITLE]["track_id"],
        path=str(music / f"{TITLE}.wav"),
        number=keys[0] >> REVISION_BITS,
        vectors=[vectors[key] for key in keys],
        derived=keys[1],
    )
    return library, removed


def judge(library: Library, track_ids: list[str]) -> None:
    """Store a listener's judgement of the neighbours of each track."""
    table = library.table("judgements")
    rows = [{"session": "0123456789", "track_id": track_id, "preferred": "left"} for track_id in track_ids]
    table.append(pa.Table.from_pylist(rows, table.schema()), "1")


def give_audio_of(library: Library, track_id: str, audio_id: str) -> None:
    """Store that a track's audio is that of another, as a source of audio reports it."""
    previews = library.table("previews")
    for path in previews.files():
        rows = pa.parquet.read_table(path).to_pylist()
        rows = [row | ({"audio_id": audio_id} if row["track_id"] == track_id else {}) for row in rows]
        pa.parquet.write_table(pa.Table.from_pylist(rows, previews.schema()), path)


def train_and_index(library: Library) -> str:
    transform(library, TransformConfig())
    factorize(library, FactorizeConfig(factors=2, min_playlists=1))
    run = train(library, "mfcc", MODELS["mfcc"](), TrainConfig()).name
    embed(library, EmbedConfig(run=run, actors=1))
    project(library, ProjectConfig(run=run))
    index(library, IndexConfig(run=run, links=8))
    return run


@pytest.fixture
def copied(prepared: tuple[Library, Removed], tmp_path: Path) -> tuple[Library, Removed]:
    """The library for one test. The paths in it are those of the music that it was made from."""
    library, removed = prepared
    shutil.copytree(library.root, tmp_path / "copy")
    return Library.open(str(tmp_path / "copy")), removed


def traces(library: Library, removed: Removed) -> dict[str, set[str]]:
    """The files that hold something of the track, and what; but for the table `removed`."""
    holding: dict[str, set[str]] = {}
    for path in sorted(Path(library.root).rglob("*")):
        place = str(path.relative_to(library.root))
        if path.is_file() and not place.startswith("removed/"):
            content = path.read_bytes()
            kinds = {"text" for text in removed.texts if text in content.lower()}
            kinds |= {"vector" for vector in removed.vectors if has_vector(content, vector)}
            for value in decoded(path):
                kinds |= kinds_of(value, removed)
            if kinds:
                holding[place] = kinds
    return holding


def has_vector(content: bytes, vector: np.ndarray) -> bool:
    """Whether its first numbers are in a file as they are, in either precision."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float16)):
        for offset in range(dtype.itemsize):
            count = max(0, len(content) - offset) // dtype.itemsize
            with np.errstate(all="ignore"):
                numbers = np.frombuffer(content, dtype, count, offset).astype(np.float64)
                near = [abs(numbers[n : count - FIRST + n] - vector[n]) < 1e-3 for n in range(FIRST)]
            if count >= FIRST and np.logical_and.reduce(near).any():
                return True
    return False


def decoded(path: Path) -> Iterator[Any]:
    """The values in a file: numbers, texts, bytes, and lists of numbers."""
    if ".parquet" in path.suffixes:
        yield from leaves(pa.parquet.read_table(path).to_pylist())
    elif path.suffix == ".arrow":
        yield from leaves(pa.ipc.open_file(path).read_all().to_pylist())
    elif path.suffix == ".json":
        yield from leaves(json.loads(path.read_bytes()))
    elif path.suffix == ".npy":
        array = np.load(path)
        yield from leaves(array.tolist() if array.dtype.names else [list(row) for row in array.tolist()])
    elif path.suffix == ".sqlite":
        yield from sqlite3.connect(path).iterdump()


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], float):
        yield value
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    elif isinstance(value, (list, tuple, np.void)):
        for one in value:
            yield from leaves(list(one) if isinstance(one, np.ndarray) else one)
    elif value is not None:
        yield value


def kinds_of(value: Any, removed: Removed) -> set[str]:
    if isinstance(value, str):
        return {"text" for text in removed.texts if text in value.casefold().encode()}
    if isinstance(value, int) and not isinstance(value, bool):
        is_key = removed.number in (value, value >> REVISION_BITS)
        return {"key"} if is_key else {"derived"} if value == removed.derived else set()
    if isinstance(value, list):
        vectors = [vector for vector in removed.vectors if len(vector) == len(value)]
        return {"vector" for vector in vectors if np.allclose(value, vector, atol=1e-3)}
    return set()


def assert_nothing_remains(library: Library, removed: Removed) -> None:
    """But for the key of the other track: it is still in the catalogue, and its preview is a failure."""
    remaining = traces(library, removed)
    places = (
        "tracks/",
        "previews/",
        "factors/",
        "_checkpoints/previews/",
        "_keys/tracks/",
        "_keys/previews/",
    )
    allowed = {place for place in remaining if place.startswith(places)}
    assert {place: kinds for place, kinds in remaining.items() if place not in allowed} == {}
    assert all(remaining[place] == {"derived"} for place in allowed), remaining
    (preview,) = library.table("previews").read(
        ["audio_id", "audio", "location", "error"], pa.compute.field("track_key") == removed.derived
    ).to_pylist()  # fmt: skip
    assert preview == {"audio_id": None, "audio": None, "location": None, "error": "removed"}
    assert library.table("removed").read(["track_id"])["track_id"].to_pylist() == [removed.track_id]


def test_nothing_in_a_library_holds_a_removed_track(copied: tuple[Library, Removed]) -> None:
    library, removed = copied
    run = library.folders("indexes")[0]
    leave_unfinished(library, run)
    before = traces(library, removed)
    folders = {place.split("/")[0] for place in before}
    assert folders == {"tracks", "pages", "playlists", "previews", "spectrograms", "factors", "embeddings",
                       "judgements", "maps", "indexes", "runs", "_checkpoints", "_keys"}  # fmt: skip
    files = {Path(place).name: kinds for place, kinds in before.items() if place.startswith("indexes/")}
    assert files["reference.npy"] >= {"key", "vector"} and "vector" in files["graph.hnsw"]
    assert "vector" in files["vectors.npy"] and "text" in files["names.sqlite"]
    assert files["tracks.arrow"] >= {"key", "text"}
    assert len([place for place in before if place.endswith("/reference.npy")]) == 2
    summary = remove(library, RemoveConfig((removed.track_id,)))
    assert f"tracks removed from indexes: {run} 2" in summary
    assert_nothing_remains(library, removed)
    version = newest_version(library, run)
    assert library.folders("indexes", run) == [version.version, "shards"]
    assert version.tracks == SONGS
    assert not index(library, IndexConfig(run=run, links=8)).new
    assert transform(library, TransformConfig()).done == 0
    assert "rows removed: none" in remove(library, RemoveConfig((removed.track_id,)))


def leave_unfinished(library: Library, run: str) -> None:
    """What killed jobs leave behind: data behind a pending note, temporary files, and a shard."""
    embeddings = library.table("embeddings", run)
    (data,) = [path for path in embeddings.files()[:1]]
    note = list_files(library.filesystem, embeddings.checkpoint_path)[0]
    shutil.copy(data, Path(data).with_name("dead_000000_0.parquet"))
    shutil.copy(note, Path(note).with_name(f"dead_000000{PENDING_SUFFIX}"))
    shutil.copy(library.table("tracks").files()[0], f"{library.table('tracks').path}/x.parquet.part")
    split = split_path(library, run)
    shutil.copy(split, f"{split}.part")
    shards = Path(library.path("indexes", run, "shards"))
    shutil.copytree(next(shards.iterdir()), shards / "000009-0000-dead")


def test_later_crawls_store_nothing_of_a_removed_track(copied: tuple[Library, Removed]) -> None:
    library, removed = copied
    remove(library, RemoveConfig((removed.track_id,)))
    music = Path(removed.path).parent
    counts = crawl(library, FolderSource(music), CrawlConfig()).counts
    assert (counts["removed"], counts["read"], counts["new"]) == (1, 1, 0)
    manifest = Path(library.root).parent / "playlists.csv"
    other = library.table("tracks").read(["track_id"])["track_id"][0].as_py()
    manifest.write_text(f"playlist,position,track\nq,0,{removed.track_id}\nq,1,{other}\n")
    crawl(library, ManifestSource(str(manifest)), CrawlConfig())
    entries = library.table("playlists").read(["playlist", "track_id"]).to_pylist()
    assert [entry["track_id"] for entry in entries if entry["playlist"] == "q"] == [other]
    assert_nothing_remains(library, removed)


def test_a_removal_that_dies_at_any_change_of_a_table_completes_when_it_is_started_again(
    copied: tuple[Library, Removed], tmp_path: Path
) -> None:
    library, removed = copied
    shutil.rmtree(library.path("indexes"))
    config = RemoveConfig((removed.track_id,))
    number, finished = 1, False
    while not finished:
        copy = Path(shutil.copytree(library.root, tmp_path / str(number)))
        filesystem = pa.fs.PyFileSystem(Observed(library.filesystem, Steps(number)))
        try:
            remove(Library(filesystem, str(copy)), config)
            finished = True
        except Died:
            remove(Library(library.filesystem, str(copy), take_over=True), config)
        assert_nothing_remains(Library.open(str(copy)), removed)
        shutil.rmtree(copy)
        number += 7  # every change takes a minute
    assert number > 100


@pytest.mark.parametrize("step", ["delete", "rebuild", "publish", "prune", "holds"])
@pytest.mark.parametrize("after", [False, True])
def test_a_removal_that_dies_in_an_index_completes_when_it_is_started_again(
    copied: tuple[Library, Removed], step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, removed = copied
    function = getattr(erase, step)

    def dies(*arguments: Any, **options: Any) -> None:
        if after:
            function(*arguments, **options)
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(erase, step, dies)
        remove(library, RemoveConfig((removed.track_id,)))
    remove(library, RemoveConfig((removed.track_id,)))
    assert_nothing_remains(library, removed)


@pytest.mark.parametrize(
    "name", ["tracks", "previews", "spectrograms/default", "indexes", "embeddings", "runs"]
)
def test_a_removal_beside_another_writer_is_refused(copied: tuple[Library, Removed], name: str) -> None:
    library, removed = copied
    lease = f"{name}/{library.folders(name)[0]}" if name in ("indexes", "embeddings", "runs") else name
    with library.lease(lease), pytest.raises(Conflict, match=f"{lease} is being written by another process"):
        remove(library, RemoveConfig((removed.track_id,)))
    with library.lease("tracks"), pytest.raises(Conflict, match="tracks is being written"):
        crawl(library, FolderSource(Path(removed.path).parent), CrawlConfig())


def takedown(*ids: str, locations: tuple[str, ...] = (), derived: tuple[int, ...] = ()) -> Takedown:
    numbers = np.array([1], np.int64)
    return Takedown(ids, locations, KeySet(numbers), KeySet(numbers, np.array(derived, np.int64)))


def rows_of(name: str, *rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), pa.schema(TABLES[name].columns))


def test_pages_are_stored_without_what_names_a_removed_track() -> None:
    pages = rows_of(
        "pages",
        {"source": "a", "page": "/m/x.mp3"},
        {"source": "a", "page": "track/1"},
        {"source": "a", "page": "track/12?market=x"},
        {"source": "b", "page": "track/1"},  # of another source
        {
            "source": "a",
            "page": "list",
            "links": [{"name": "track/1", "step": 0}, {"name": "tracks?ids=1,12", "step": 0}],
            "page_problems": [
                {"kind": "k", "detail": "track/1: no answer"},
                {"kind": "k", "detail": "/m/x.mp3: no tags"},
                {"kind": "k", "detail": "a:12 and track/12 are others"},
            ],
        },
    )
    kept, count = rows_without("pages", pages, takedown("a:1", locations=("/m/x.mp3",)))
    assert count == 3
    assert kept["page"].to_pylist() == ["track/12?market=x", "track/1", "list"]
    last = kept.to_pylist()[-1]
    assert [link["name"] for link in last["links"]] == ["tracks?ids=12"]
    assert [problem["detail"] for problem in last["page_problems"]] == ["a:12 and track/12 are others"]


def test_another_track_loses_the_audio_and_the_location_that_a_removed_one_has() -> None:
    previews = rows_of(
        "previews",
        {"track_key": 256, "track_id": "a:1", "audio": b"1", "audio_id": "a:1"},
        {"track_key": 512, "track_id": "b:1", "audio": b"1", "audio_id": "a:1", "sha256": bytes(32)},
        {"track_key": 768, "track_id": "b:2", "audio": b"2"},
    )
    kept, count = rows_without("previews", previews, takedown("a:1", derived=(512,)))
    assert (count, kept["audio"].to_pylist(), kept["error"].to_pylist()) == (
        2,
        [None, b"2"],
        ["removed", None],
    )
    assert kept["sha256"].to_pylist() == [None, None]
    tracks = rows_of(
        "tracks", {"track_id": "b:1", "location": "a:1"}, {"track_id": "b:2", "location": "a:12"}
    )
    kept, count = rows_without("tracks", tracks, takedown("a:1"))
    assert (count, kept["location"].to_pylist()) == (1, [None, "a:12"])


def test_a_split_without_a_track_keeps_which_of_the_others_share_a_recording() -> None:
    keys = np.array([256, 512, 768, 1024], np.int64)
    parts = Split(keys[:3], keys[3:], {512: 256, 768: 256, 1024: 256})
    kept = without(parts, KeySet(np.array([1])))
    assert (kept.train.tolist(), kept.validation.tolist()) == ([512, 768], [1024])
    assert kept.same_recording == {768: 512, 1024: 512}
