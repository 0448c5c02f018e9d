"""A library that an earlier version wrote, with a run of each model, opens and takes new tracks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT, tone
from serving import local_service

from songray.audio.download import DownloadConfig, download
from songray.audio.spectrograms import SPECS, from_bytes
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.learning import runs
from songray.learning.embed import EmbedConfig, embed
from songray.learning.encoder import load
from songray.learning.factorize import FactorizeConfig, factorize
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, train
from songray.library import Library, matrix
from songray.search.build import IndexConfig, index
from songray.service.options import IngressConfig

COMMIT = "396240d"
TRACKS = 10
NEWER = {"musicnn-msd", "musicnn-mtt", "distilled", "transformers"}  # models that the earlier version has not
TRAINED = ("contrastive",)  # SONGRAY_EARLIER_MODELS names others
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten songs with metadata, and playlists of them."""
    folder = tmp_path_factory.mktemp("music")
    songs, playlists = ["id,url,title,artist,genre"], ["playlist,position,track"]
    for number in range(TRACKS):
        add_song(folder, number, songs)
    playlists += [f"p{n},{place},{(3 * n + place) % TRACKS}" for n in range(8) for place in range(6)]
    (folder / "songs.csv").write_text("\n".join(songs) + "\n")
    (folder / "playlists.csv").write_text("\n".join(playlists) + "\n")
    return folder


def add_song(folder: Path, number: int, lines: list[str]) -> None:
    tone(folder / f"{number}.flac", seconds=6, hertz=200 + 60 * number)
    lines.append(f"{number},{number}.flac,Song {number},Artist {number // 2},Genre {number % 2}")


@pytest.fixture(scope="module")
def earlier(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library, written by the code of COMMIT in a process of its own."""
    archive = subprocess.run(["git", "archive", COMMIT, "songray"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"this clone has no commit {COMMIT}: {archive.stderr.decode().strip()}")
    code = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(code, filter="data")
    # In that folder, since workers look for modules in that of the script first.
    script = shutil.copy(ROOT / "tests" / "earlier_version.py", code)
    place = tmp_path_factory.mktemp("library")
    trained = os.environ.get("SONGRAY_EARLIER_MODELS", " ".join(TRAINED)).split()
    made = subprocess.run(
        [sys.executable, script, str(music), str(place), *trained],
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-3000:]
    return Library.open(str(place))


def test_a_library_of_an_earlier_version_opens_and_takes_new_tracks(
    earlier: Library, music: Path, cluster: None
) -> None:
    names = {runs.choose(earlier, name).model: name for name in runs.finished(earlier)}
    assert set(names) == set(MODELS) - NEWER
    assert_runs_are_those_of_the_same_options(earlier, names)
    for model in ("contrastive", "mfcc"):
        assert_vectors_are_the_stored_ones(earlier, names[model])
    scores = evaluate(earlier, EvaluateConfig()).scores[names["mfcc"]]
    assert {"artist", "genre"} <= {score.task for score in scores}
    assert not index(earlier, IndexConfig(run=names["mfcc"], links=8)).new
    assert_new_tracks_join(earlier, music, names)


def assert_runs_are_those_of_the_same_options(library: Library, names: dict[str, str]) -> None:
    """A training with the options of an earlier one finds its run, by its default name, and trains
    nothing."""
    for model, name in names.items():
        run = runs.choose(library, name)
        again = train(library, model, runs.model_config(run), TrainConfig())
        assert (again.name, again.tracks) == (name, run.tracks)
        encoder = load(library, run)
        (spec,) = encoder.specs
        frames = np.random.default_rng(0).integers(0, 255, (600, SPECS[spec].bins))
        (vector,) = encoder.encode({spec: [frames.astype(np.uint8)]})
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert not factorize(library, FactorizeConfig(factors=4)).is_new


def assert_vectors_are_the_stored_ones(library: Library, name: str) -> None:
    encoder = load(library, runs.choose(library, name))
    (spec,) = encoder.specs
    rows = library.table("spectrograms", "default").read(["track_key", spec]).sort_by("track_key")
    vectors = encoder.encode({spec: [from_bytes(cell.as_py(), SPECS[spec]) for cell in rows[spec]]})
    stored = library.table("embeddings", name).read(["track_key", "embedding"]).sort_by("track_key")
    assert np.abs(matrix(stored["embedding"]) - vectors).max() < 1e-4


def assert_new_tracks_join(library: Library, music: Path, names: dict[str, str]) -> None:
    """Old rows are not touched: unchanged tracks stay, and only new ones are processed."""
    with (music / "songs.csv").open("a") as file:
        lines: list[str] = []
        for number in (TRACKS, TRACKS + 1):
            add_song(music, number, lines)
        file.write("\n".join(lines) + "\n")
    counts = crawl(library, ManifestSource(str(music)), CrawlConfig()).counts
    assert (counts["new"], counts["unchanged"], counts["changed"]) == (2, TRACKS, 0)
    assert (download(library, DownloadConfig()).done, download(library, DownloadConfig()).done) == (2, 0)
    config = TransformConfig(specs=("mel128", "linear257", "mel128-8k", "mel96"))
    assert transform(library, config).done == 2
    for model in ("mfcc", "ali"):
        embedded = embed(library, EmbedConfig(run=names[model], actors=1))
        assert embedded.existing in (0, TRACKS) and embedded.existing + embedded.done == TRACKS + 2
    updated = index(library, IndexConfig(run=names["mfcc"], links=8))
    assert (updated.added, updated.deleted, updated.version.tracks) == (2, 0, TRACKS + 2)
    with local_service(library, IngressConfig(), names["mfcc"]) as url:
        answer = httpx.get(f"{url}/v1/tracks/manifest:11/similar?k=20").json()
    similarities = [match["similarity"] for match in answer["similar"]]
    assert len(similarities) == TRACKS + 1 and similarities == sorted(similarities, reverse=True)
