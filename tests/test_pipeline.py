"""Real music through every stage: as a folder, and as a manifest whose files a server gives out."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import mutagen
import numpy as np
import pytest
import torch
from conftest import free_port
from playwright.sync_api import expect, sync_playwright
from samples import previews

from songray.audio.download import DownloadConfig, download
from songray.audio.extract import Extraction, extract_batch
from songray.audio.spectrograms import SPECS, from_bytes
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.folder import FolderSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.evaluation.scores import Score
from songray.learning import runs
from songray.learning.embed import EmbedConfig, embed
from songray.learning.encoder import load
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, train
from songray.library import Library, matrix
from songray.pipeline import PipelineConfig, pipeline
from songray.search.build import IndexConfig, index
from songray.search.version import versions
from songray.service.app import served
from songray.service.options import IngressConfig, ServeConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

BROWSER_OPTIONS = (
    "--no-sandbox", "--enable-unsafe-swiftshader", "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip


def manifest_rows(clips: Path) -> list[dict[str, str]]:
    with (clips / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def add_bad_files(folder: Path, clips: Path) -> None:
    """Files that any collection contains beside music."""
    whole = (clips / "brahms_hungarian5_0.mp3").read_bytes()
    (folder / "truncated.mp3").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.mp3").touch()
    (folder / "page.mp3").write_text("<html>gone</html>" * 99)
    for path in (clips / "odd_inputs").glob("*.ogg"):
        shutil.copy(path, folder)


def run_stages(library: Library, models: list[str]) -> None:
    download(library, DownloadConfig())
    transform(library, TransformConfig())
    for model in models:
        train(library, model, MODELS[model](), TrainConfig(run=model))
        embed(library, EmbedConfig(run=model))


def errors(library: Library, *names: str) -> dict[str, str]:
    titles = {
        row["track_id"]: row["title"]
        for row in library.table("tracks").newest(["track_id", "title"]).rows.to_pylist()
    }
    rows = [
        row
        for name in names
        for row in library.table(*name.split("/")).read(["track_id", "error"]).to_pylist()
    ]
    return {titles[row["track_id"]]: row["error"] for row in rows if row["error"]}


def scores(library: Library) -> dict[tuple[str, str], Score]:
    table = evaluate(library, EvaluateConfig()).scores
    return {(run, score.task): score for run, several in table.items() for score in several}


def test_real_music_as_a_manifest(
    library: Library, clips: Path, tmp_path: Path, serve_folder: Callable[[Path], str]
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(clips, folder)
    add_bad_files(folder, clips)
    url = serve_folder(folder)
    names = [row["file"] for row in manifest_rows(clips)]
    recordings = {row["file"]: row["track_id"] for row in manifest_rows(clips)}
    artists = {row["file"]: row["artist"] for row in manifest_rows(clips)}
    names += ["truncated.mp3", "empty.mp3", "page.mp3", "nowhere.mp3"]
    lines = [
        f"{Path(name).stem},{url}/{name},{recordings.get(name, '')},{artists.get(name, '')}" for name in names
    ]
    (tmp_path / "songs.csv").write_text("\n".join(["id,url,recording,artist", *lines]))
    source = ManifestSource(str(tmp_path / "songs.csv"))
    assert crawl(library, source, CrawlConfig()).counts["new"] == 55
    run_stages(library, ["random", "mfcc"])
    expected = {"empty": "empty", "nowhere": "http_404", "page": "not_audio"}
    assert errors(library, "previews", "spectrograms/default") == expected
    found = scores(library)
    assert found["mfcc", "recording"].queries == 49
    assert found["mfcc", "recording"].metrics["nearest"].mean > 0.6  # 0.78 measured; 0.05 by chance
    assert found["mfcc", "artist"].metrics["nearest"].mean > 0.7
    assert found["random", "recording"].metrics["nearest"].mean > 0.9  # 0.97 measured
    assert_batch_and_single_vectors_agree(library, clips)
    assert_answers(library)


def assert_batch_and_single_vectors_agree(library: Library, clips: Path) -> None:
    """A clip that is encoded alone gets the vector that the job wrote."""
    encoder = load(library, runs.choose(library, "random"))
    (row,) = extract_batch(previews((clips / "joth_party_1.mp3").read_bytes()), Extraction())[0].to_pylist()
    spectrogram = from_bytes(row["mel128"], SPECS["mel128"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the job's workers: another number of threads sums in another order
    alone = encoder.encode({"mel128": [spectrogram]})[0]
    torch.set_num_threads(threads)
    rows = library.table("embeddings", "random").read()
    written = matrix(rows["embedding"])[rows["track_id"].to_pylist().index("manifest:joth_party_1")]
    assert np.abs(alone - written).max() < 1e-5
    assert np.linalg.norm(written) == pytest.approx(1, abs=1e-5)


def assert_answers(library: Library) -> None:
    index(library, IndexConfig(run="mfcc"))
    with served(library, ServeConfig(port=free_port(), ingress=IngressConfig(run="mfcc"))) as address:
        answer = httpx.get(f"{address}/v1/tracks/manifest:kerr_crashedship_0/similar?k=3").json()
    recordings = [one["track"]["recording"] for one in answer["similar"]]
    assert len(recordings) == 3 and "kerr_crashedship" not in recordings  # which the question is
    assert answer["track"]["artist_names"] == ["Ted Kerr"]


def test_real_music_as_a_folder(library: Library, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    for row in manifest_rows(clips):
        place = folder / row["artist"].replace("/", " ")
        place.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copy(clips / row["file"], place))
        path.chmod(0o644)
        tags = mutagen.File(path, easy=True)
        tags.add_tags()
        tags.update({"title": path.stem, "artist": row["artist"], "album": row["title"]})
        tags.save()
    add_bad_files(folder, clips)
    summary = crawl(library, FolderSource(folder), CrawlConfig())
    assert summary.counts["new"] == 51 + 3 + 4
    run_stages(library, ["mfcc"])
    assert errors(library, "previews", "spectrograms/default") == {"empty": "empty", "page": "not_audio"}
    assert library.table("previews").read(["audio"])["audio"].null_count == 58  # files stay where they are
    found = scores(library)
    assert found["mfcc", "artist"].queries == 50
    assert found["mfcc", "artist"].metrics["nearest"].mean > 0.7


def test_a_folder_is_served_by_several_models_together(
    library: Library, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its default set of spectrograms, made by an earlier version, lacks one that a member takes. A sample of
    the tracks is served first."""
    weights = {"musicnn-msd": 1.0, "mfcc": 0.5}
    answers: list[Any] = []
    exported: list[str] = []

    def use(address: str) -> None:
        answers.append(httpx.get(f"{address}/v1/stats").json())
        if executable := shutil.which("chromium"):
            exported.append(export_from_the_page(address, executable))

    monkeypatch.setattr("songray.service.app.wait_for_end", use)
    monkeypatch.setattr("songray.pipeline.MEMBERS", weights)  # fewer than by default
    monkeypatch.setattr("songray.pipeline.FIRST_TRACKS", 4)
    folder = tmp_path / "music"
    folder.mkdir()
    files = sorted(clips.glob("*.mp3"))
    for file in files[:9]:
        shutil.copyfile(file, folder / file.name)
    source, config = FolderSource(folder), PipelineConfig(port=free_port())
    crawl(library, source, CrawlConfig())
    download(library, DownloadConfig(sample=3))
    transform(library, TransformConfig(specs=("mel128",)))
    pipeline(library, source, CrawlConfig(), config)
    assert library.folders("spectrograms") == ["default", "mel96-16k"]
    (name,) = (name for name in runs.finished(library) if runs.choose(library, name).members)
    assert [version.tracks for version in versions(library, name)] == [9, 4]
    assert [(answer["run"], answer["version"], answer["tracks"]) for answer in answers] == [
        (name, "000002", 9)
    ]
    for text in exported:  # only this machine reaches the service
        assert Path(text.splitlines()[2]).parent == folder
    members = [runs.choose(library, member) for member in runs.choose(library, name).members]
    assert {member.model for member in members} == set(weights)
    assert len(runs.finished(library)) == len(weights) + 1
    for run in library.folders("embeddings"):  # the second version embedded what it added
        table = library.table("embeddings", run)
        assert sorted(table.read(["track_key"], files=[path]).num_rows for path in table.files()) == [4, 5]


def export_from_the_page(address: str, executable: str) -> str:
    """Play a file on the page, add it to the playlist, and save that."""
    problems: list[str] = []
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=executable, args=BROWSER_OPTIONS).new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(address)
        expect(page.locator("#list > li")).to_have_count(9)
        expect(page.locator("#map-facts")).to_contain_text("t-SNE map: trustworthiness")
        page.locator("#list .title").first.click()
        expect(page.locator("#list .similarity").first).to_be_visible()
        page.locator("#list [data-play]").first.click()
        expect(page.locator("#player-time")).to_contain_text("/ 0:")
        page.locator("#list button[aria-label^=Add]").first.click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save").click()
        text = Path(download.value.path()).read_text()
    assert problems == []
    return text
