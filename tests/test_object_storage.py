"""A library in object storage, which has no atomic rename: nothing is lost where it refuses requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import tone
from fakes.object_storage import ObjectStorage, object_storage
from samples import add_previews, transform_error

from songray.amend import RemoveConfig, remove
from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.errors import StorageError
from songray.learning.embed import EmbedConfig, embed
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, train
from songray.search.build import IndexConfig, index
from songray.search.index import Index
from songray.search.version import versions
from songray.storage import list_files
from songray.table import Table


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    with object_storage() as storage:
        yield storage


def keys(table: Table) -> list[int]:
    return sorted(table.read(["track_key"])["track_key"].to_pylist())


@pytest.mark.usefixtures("cluster")
def test_a_commit_whose_deletion_fails_is_a_commit(storage: ObjectStorage, tmp_path: Path) -> None:
    library = storage.library("deletion")
    add_previews(library, [tone(tmp_path / "sound.wav", seconds=1).read_bytes()] * 64)
    output = library.table("spectrograms", "default")
    storage.fault = lambda method, path: 403 if method == "DELETE" and "pending" in path else None
    assert isinstance(transform_error(library), StorageError)
    finished = output.finished_keys().tolist()
    assert len(finished) > 0 and keys(output) == finished
    storage.fault = lambda method, path: None
    summary = transform(library, TransformConfig(rows_per_file=16))
    assert (summary.existing, summary.existing + summary.done) == (len(finished), 64)
    assert keys(output) == output.finished_keys().tolist() == [number << 8 for number in range(64)]
    assert not [path for path in list_files(library.filesystem, output.checkpoint_path) if "pending" in path]


@pytest.mark.usefixtures("cluster")
def test_storage_that_refuses_or_delays_requests_loses_nothing(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    library = storage.library("overloaded")
    add_previews(library, [tone(tmp_path / "sound.wav", seconds=1).read_bytes()] * 32)
    output = library.table("spectrograms", "default")
    data = "/library/spectrograms/default/"
    storage.fault = lambda method, path: 503 if data in path and "made_by" not in path else None
    error = transform_error(library)
    assert isinstance(error, StorageError)
    assert str(error).startswith(f"the library cannot be used at {output.path}: ")
    storage.fault = lambda method, path: None
    assert keys(output) == output.finished_keys().tolist() == []
    every = iter(range(10**9))
    storage.fault = lambda method, path: 0.3 if next(every) % 5 == 0 else None  # slow, and right
    assert transform_error(library) is None
    storage.fault = lambda method, path: None
    assert keys(output) == output.finished_keys().tolist() == [number << 8 for number in range(32)]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_all_stages_and_a_removal(
    storage: ObjectStorage, serve_folder: Callable[[Path], str], tmp_path: Path
) -> None:
    library = storage.library("stages")
    url = serve_folder(tmp_path)
    for number in range(12):
        tone(tmp_path / f"{number}.wav", 4, 200 + 50 * number)
    rows = "".join(f"{number},{url}/{number}.wav,Song {number}\n" for number in range(12))
    (tmp_path / "songs.csv").write_text(f"id,url,title\n{rows}")
    crawl(library, ManifestSource(str(tmp_path / "songs.csv")), CrawlConfig())
    assert download(library, DownloadConfig()).done == 12
    assert transform(library, TransformConfig()).done == 12
    run = train(library, "mfcc", MODELS["mfcc"](), TrainConfig())
    assert embed(library, EmbedConfig()).done == 12
    assert index(library, IndexConfig()).version.tracks == 12
    remove(library, RemoveConfig(("manifest:3",)))
    (version,) = versions(library, run.name)
    opened = Index.open(library, version)
    assert (version.tracks, asyncio.run(opened.find(["manifest:3"]))) == (11, {})
    assert len(library.table("embeddings", run.name).read(["track_id"])) == 11
