"""The page on maps of different sizes, in Chromium's software rendering: paint, points, frames, bytes; beside
pages that show as many points by plotly-strict and by deck.gl, which `npm pack` fetches.

The pages of the peers have the same policy for scripts, and a plot of the same size; they load 10 bytes a
point and show all of them, while ours shows a sample of 100,000 at once.

Environment: SONGRAY_BENCH_POINTS, "1000 100000"; "1000000" takes some minutes to build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web
from bench_index import track_rows
from fakes import served
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
from songray.service.webpage import policy

POINTS = tuple(map(int, os.environ.get("SONGRAY_BENCH_POINTS", "1000 100000").split()))
DIMENSION, CLUSTERS, SHARD_TRACKS, SECONDS = 16, 20, 250_000, 4
GRAPH = GraphOptions({"M": 8, "ef_construction": 40}, 0.5, 2)
ZOOM = """window.zoom = frame => document.getElementById("points").dispatchEvent(
    new WheelEvent("wheel", { deltaY: frame % 40 < 20 ? -20 : 20, clientX: 300, clientY: 300 }));"""
FRAMES = """async seconds => {
    const started = performance.now();
    let frames = 0;
    while (performance.now() - started < 1000 * seconds) {
        await window.zoom(++frames);
        await new Promise(requestAnimationFrame);
    }
    return frames / seconds;
}"""
PEERS = {  # name: package of npm, its version, and the file that a page loads
    "plotly-strict": ("plotly.js-strict-dist-min", "4.1.1", "plotly-strict.min.js"),
    "deck.gl": ("deck.gl", "9.4.0", "dist.min.js"),
}
PEER_PAGE = """<!doctype html><title>peer</title><link rel="stylesheet" href="style.css">
<p>points</p><div id="plot"></div>
<script src="library.js"></script><script type="module" src="page.js"></script>"""
PEER_POLICY = policy([]).replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")  # plotly's styles
PEER_STYLE = "#plot { position: relative; width: 640px; height: 690px } p { margin: 0 }"
POINTS_OF_PEERS = """
const buffer = await (await fetch("points")).arrayBuffer(), count = buffer.byteLength / 10;
const xy = new Float32Array(buffer, 0, 2 * count), codes = new Uint16Array(buffer, 8 * count, count);
const color = code => [60 + 97 * code % 180, 60 + 57 * code % 180, 60 + 31 * code % 180];
const size = Math.max(2, 8 * Math.sqrt(4000 / Math.max(4000, count)));
const width = frame => 1 / 1.03 ** (frame % 40 < 20 ? frame % 40 : 40 - frame % 40);
"""
PEER_SCRIPTS = {
    "plotly-strict": """
const of = axis => Float32Array.from({ length: count }, (_, i) => xy[2 * i + axis]);
const colors = Array.from(codes, code => `rgb(${color(code)})`);
await Plotly.newPlot("plot", [{ type: "scattergl", mode: "markers", x: of(0), y: of(1), hoverinfo: "none",
    marker: { size, color: colors } }], { margin: { l: 0, r: 0, t: 0, b: 0 }, hovermode: false,
    xaxis: { range: [0, 1], visible: false }, yaxis: { range: [0, 1], visible: false } });
window.zoom = frame => {
    const range = [0.5 - width(frame) / 2, 0.5 + width(frame) / 2];
    return Plotly.relayout("plot", { "xaxis.range": range, "yaxis.range": range });
};
window.rendered = performance.now();""",
    "deck.gl": """
const colors = new Uint8Array(4 * count);
for (let i = 0; i < count; i++) colors.set([...color(codes[i]), 235], 4 * i);
const data = { length: count, attributes: {
    getPosition: { value: xy, size: 2 }, getFillColor: { value: colors, size: 4 } } };
const layer = new deck.ScatterplotLayer({ id: "points", data, getRadius: size / 2, radiusUnits: "pixels" });
const view = frame => ({ target: [0.5, 0.5, 0], zoom: Math.log2(640 / width(frame)) });
let drawn;
const plot = new deck.Deck({ parent: document.getElementById("plot"), views: new deck.OrthographicView(),
    viewState: view(0), layers: [layer], onAfterRender: () => drawn?.() });
const next = () => new Promise(resolve => { drawn = resolve; });
window.zoom = frame => { const done = next(); plot.setProps({ viewState: view(frame) }); return done; };
await next();
window.rendered = performance.now();""",
}


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


def fetch_peers(folder: Path) -> dict[str, Path]:
    """The file of each peer that npm fetches, by name."""
    if shutil.which("npm") is None:
        print("\nnpm is not installed: the page is measured alone")
        return {}
    fetched = {}
    for name, (package, version, file) in PEERS.items():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, capture_output=True
        )
        with tarfile.open(folder / f"{package}-{version}.tgz") as archive:
            archive.extract(f"package/{file}", folder / name, filter="data")
        fetched[name] = folder / name / "package" / file
    return fetched


@contextmanager
def peer_page(name: str, library: Path, count: int) -> Iterator[str]:
    """A page that shows random points by the library of a peer; its URL."""
    random = np.random.default_rng(0)
    points = random.random((count, 2), np.float32).tobytes()
    files = {
        "/": (PEER_PAGE, "text/html"),
        "/style.css": (PEER_STYLE, "text/css"),
        "/page.js": (POINTS_OF_PEERS + PEER_SCRIPTS[name], "text/javascript"),
        "/library.js": (library.read_bytes(), "text/javascript"),
        "/points": (points + random.integers(0, 20, count, np.uint16).tobytes(), "application/octet-stream"),
    }

    async def answer(request: web.Request) -> web.Response:
        content, kind = files[request.path]
        body = content.encode() if isinstance(content, str) else content
        return web.Response(body=body, content_type=kind, headers={"Content-Security-Policy": PEER_POLICY})

    application = web.Application()
    for path in files:
        application.router.add_get(path, answer)
    with served(application) as url:
        yield url


def measure(page: Page, url: str, is_peer: bool = False) -> list[float]:
    """Seconds until the first paint and until the points are rendered, bytes that were sent, frames a second
    while the map is zoomed, and megabytes of JavaScript's memory."""
    sent = []
    page.on("response", lambda response: sent.append(response.request.sizes()["responseBodySize"]))
    page.goto(url)
    if is_peer:
        while not page.evaluate("window.rendered ?? 0"):  # wait_for_function needs unsafe-eval
            page.wait_for_timeout(200)
        rendered = page.evaluate("window.rendered / 1000")
    else:
        page.locator("#legend li").first.wait_for(timeout=60_000)
        rendered = page.evaluate("performance.now() / 1000")
        page.evaluate(ZOOM)
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
    peers = fetch_peers(tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        for count in POINTS:
            (tmp_path / f"{count}").mkdir()
            service = BuiltService(Library.open(str(tmp_path)), build_index(tmp_path / f"{count}", count))
            with local_service(service.library, IngressConfig(), service=service) as url:
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                table.append([f"{count:,}", "songray", *measure(page, url)])
                page.close()
            for name, file in peers.items():
                with peer_page(name, file, count) as url:
                    page = browser.new_page(viewport={"width": 1280, "height": 800})
                    table.append([f"{count:,}", name, *measure(page, url, is_peer=True)])
                    page.close()
        browser.close()
    heads = ["points", "page", "first paint (s)", "rendered (s)", "sent (MB)", "frames/s", "JavaScript (MB)"]
    print(f"\n{tabulate(table, heads, 'github', floatfmt='.2f')}")
