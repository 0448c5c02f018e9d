"""The report of real runs on synthetic songs, as a person reads it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import free_port
from learning.small_models import small

from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.synthetic.server import served
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.learning.embed import EmbedConfig, embed
from songray.learning.train import TrainConfig, train
from songray.library import Library

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
SONGS = 60
SEEDS = (
    "Convolutional autoencoder over time",
    "song2vec",
    "Variational autoencoder",
    "Dual-axis autoencoder",
    "SongNet",
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    """The folder of a report on two runs, of which one has a decoder."""
    folder = tmp_path_factory.mktemp("report")
    library = Library.open(str(folder / "library"))
    source = SyntheticSource(songs=SONGS, audio_port=free_port())
    with served(source):
        crawl(library, source, CrawlConfig())
        download(library, DownloadConfig())
    transform(library, TransformConfig())
    for model in ("mfcc", "cae"):
        train(library, model, small(model), TrainConfig(run=model, max_seconds=5))
        embed(library, EmbedConfig(run=model))
    add_judgements(library)
    config = EvaluateConfig(baseline="mfcc", changed=10, output=str(folder / "report"))
    (folder / "text").write_text(str(evaluate(library, config)))
    return folder


def add_judgements(library: Library) -> None:
    """Twelve listeners compare two lists each: six prefer cae twice, and six once."""
    table, at = library.table("judgements"), datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        {"session": f"session-{number // 2}", "at": at + timedelta(seconds=number), "track_id": "x",
         "left": "cae", "right": "mfcc", "preferred": "right" if number % 4 == 3 else "left"}
        for number in range(24)
    ]  # fmt: skip
    table.append(pa.Table.from_pylist(rows, table.schema()), "1")


def test_a_report_measures_every_part(report: Path) -> None:
    text, found = (report / "text").read_text(), json.loads((report / "report/report.json").read_text())
    tasks = {row["task"] for row in found["scores"]}
    assert {"artist", "genre-without-artist", "decade-probe", "12-dB-quieter"} <= tasks
    assert set(found["facts"]) >= {"clusters", "numbers of clusters", "space", "cost"}
    by_run = {(row["run"], row["task"], row["metric"]): row for row in found["scores"]}
    for change in ("mp3-at-64-kbit/s", "12-dB-quieter"):  # MFCCs are relative to the loudest bin
        row = by_run["mfcc", change, "itself"]
        assert (row["queries"], row["mean"]) == (10, 1) and by_run["mfcc", change, "cosine"]["mean"] > 0.9
    assert by_run["mfcc", "the-second-half-alone", "cosine"]["mean"] < 0.95
    assert abs(by_run["random vectors", "artist", "r_precision"]["mean"] - by_run[
        "mfcc", "artist", "r_precision"]["chance"]) < 0.05  # fmt: skip
    musly = by_run["musly, timbre", "artist", "r_precision"]
    assert musly["mean"] > 2 * musly["chance"] and "hubness" in found["facts"]["space"]["musly, timbre"]
    assert found["facts"]["cost"]["mfcc"]["dimension"] == 40
    assert found["facts"]["cost"]["cae"]["parameters"] > 100_000
    assert found["facts"]["cost"]["cae"]["trained on"].endswith("tracks of this library")
    assert "cae beside mfcc, retrieval: " in text and "random vectors beside" not in text
    assert {"tempo-probe", "key-probe", "mode-probe"} <= tasks
    assert "no related artist without artist: the catalogue states no related artists" in text
    assert "no 30 s of the middle: no song is a minute long" in text
    row = by_run["cae", "listening-test", "preferred"]
    assert (row["queries"], row["mean"], row["difference"]) == (24, 0.75, None)
    assert row["low"] < 0.75 < row["high"] and by_run["mfcc", "listening-test", "preferred"]["mean"] == 0.25


def test_the_page_needs_nothing_else_and_shows_every_figure(report: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    from axe_playwright_python.sync_playwright import Axe

    path = report / "report/report.html"
    assert path.stat().st_size < 15_000_000
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            problems: list[str] = []
            page.on("console", lambda message, problems=problems: problems.append(message.text))
            page.on("request", lambda request, problems=problems: problems.append(request.url)
                    if not request.url.startswith(("data:", "file:")) else None)  # fmt: skip
            page.goto(path.as_uri())
            for heading in ("Retrieval", "Probes", "Robustness", "Maps", *SEEDS, "What this report took"):
                assert page.get_by_role("heading", name=heading, exact=True).is_visible()
            figures = page.get_by_role("img")
            assert figures.count() > 20
            assert all((figure.bounding_box() or {}).get("height", 0) > 60 for figure in figures.all())
            assert page.locator("audio").count() >= 2
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert problems == []
            found = Axe().run(page).response["violations"]
            serious = [one["id"] for one in found if one["impact"] not in ("minor", None)]
            assert serious == []
        browser.close()
