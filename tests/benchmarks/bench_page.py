"""The page on maps of different sizes, in Chromium's software rendering: paint, points, frames, bytes.

Environment: SONGRAY_BENCH_POINTS, "1000 100000"; "1000000" takes some minutes to build.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bench_index import track_rows
from playwright.sync_api import Page, sync_playwright
from serving import LocalService, local_service
from tabulate import tabulate

from songray.keys import REVISION_BITS
from songray.library import Library
from songray.search.hnsw import GraphOptions
from songray.search.index import Index
from songray.search.reference import Reference
from songray.search.shard import Shard
from songray.search.shard_files import write_shard
from songray.search.version import ShardEntry, Version
from songray.service.options import IngressConfig

POINTS = tuple(map(int, os.environ.get("SONGRAY_BENCH_POINTS", "1000 100000").split()))
DIMENSION, CLUSTERS, SHARD_TRACKS, SECONDS = 16, 20, 250_000, 4
GRAPH = GraphOptions({"M": 8, "ef_construction": 40}, 0.5, 2)
FRAMES = """async seconds => {
    const started = performance.now();
    let frames = 0;
    while (performance.now() - started < 1000 * seconds) {
        document.getElementById("points").dispatchEvent(
            new WheelEvent("wheel", { deltaY: frames % 40 < 20 ? -20 : 20, clientX: 300, clientY: 300 }));
        await new Promise(requestAnimationFrame);
        frames++;
    }
    return frames / seconds;
}"""


def build_index(folder: Path, count: int) -> Index:
    """An index of vectors around a few centres, in shards."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(CLUSTERS, DIMENSION))[np.arange(count) % CLUSTERS].astype(np.float32)
    vectors += 0.4 * generator.standard_normal((count, DIMENSION), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = track_rows(count)
    numbers = rows["track_key"].to_numpy() >> REVISION_BITS
    sample = np.argsort(numbers)[:1024]
    reference = Reference(numbers[sample], vectors[sample])
    shards, entries = [], []
    for number, start in enumerate(range(0, count, SHARD_TRACKS)):
        part = slice(start, start + SHARD_TRACKS)
        place = folder / f"{number}"
        place.mkdir()
        tracks: pa.Table = rows.slice(start, SHARD_TRACKS)
        ef, recall = write_shard(place, vectors[part], tracks, reference, GRAPH)
        shards.append(Shard(place, number=number))
        entries.append(ShardEntry(f"{number}", tracks.num_rows, "", ef, recall, {}))
    parameters = GRAPH.parameters
    version = Version("bench", "000001", count, DIMENSION, parameters, 64, 0.9, 0.9, entries, {})
    return Index(version, shards)


class BuiltService(LocalService):
    def __init__(self, library: Library, index: Index) -> None:
        self.library, self.vector, self.index, self.other = library, None, index, None


def measure(page: Page, url: str) -> list[float]:
    """Seconds until the first paint and until the points are rendered, bytes that were sent, frames a second
    while the map is zoomed, and megabytes of JavaScript's memory."""
    sent = []
    page.on("response", lambda response: sent.append(response.request.sizes()["responseBodySize"]))
    page.goto(url)
    page.locator("#legend li").first.wait_for(timeout=60_000)
    rendered = page.evaluate("performance.now() / 1000")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
    received = sum(sent) / 1e6
    frames = page.evaluate(FRAMES, SECONDS)
    memory = page.evaluate("performance.memory.usedJSHeapSize / 1e6")
    return [paint, rendered, received, frames, memory]


def test_page(tmp_path: Path) -> None:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed")
    table = []
    options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        for count in POINTS:
            (tmp_path / f"{count}").mkdir()
            service = BuiltService(Library.open(str(tmp_path)), build_index(tmp_path / f"{count}", count))
            with local_service(service.library, IngressConfig(), service=service) as url:
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                table.append([f"{count:,}", *measure(page, url)])
                page.close()
        browser.close()
    heads = ["tracks", "first paint (s)", "points rendered (s)", "sent (MB)", "frames/s", "JavaScript (MB)"]
    print(f"\n{tabulate(table, heads, 'github', floatfmt='.2f')}")
