"""A breadth-first crawl over a graph of artists, with quota errors, killed midway and started again.

    make bench, or: python -m pytest -q -s --timeout=0 tests/benchmarks/bench_crawl.py

Environment: ARTISTS, 20000, of the graph.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import free_port
from tabulate import tabulate

from songray.library import Library

ROOT = Path(__file__).resolve().parents[2]
ARTISTS = int(os.environ.get("ARTISTS", 20_000))
RATE = 500


def requests(url: str) -> list[tuple[float, str]]:
    """Time and path of each request that the fake has received."""
    with urllib.request.urlopen(f"{url}/_requests") as response:
        return [tuple(pair) for pair in json.load(response)]


def start(url: str, library: Library) -> subprocess.Popen[str]:
    options = [
        "--deezer-url",
        url,
        "--deezer-requests-per-second",
        str(RATE),
        "--deezer-pause-seconds",
        "0.1",
    ]
    source = ["deezer", "--artists", "1", "--max-depth", "50", *options]
    arguments = [sys.executable, "jobs/crawl.py", *source, "--library", library.root]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def peak_rate(times: np.ndarray, seconds: float) -> float:
    """The highest rate, in requests per second, of any window of so many seconds."""
    return float((np.arange(times.size) + 1 - np.searchsorted(times, times - seconds)).max() / seconds)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.timeout(0)
def test_breadth_first(tmp_path: Path) -> None:
    library = Library.open(str(tmp_path))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--artists", str(ARTISTS), "--quota-errors", "0.02"]
    fake = subprocess.Popen([sys.executable, "-m", "fakes.deezer", *options], cwd=ROOT / "tests")
    try:
        process = start(url, library)
        pages = library.table("pages")
        while len(pages.read(["page"])) < ARTISTS * 2 / 3:
            assert process.poll() is None, process.communicate()
            time.sleep(1)
        process.kill()
        process.wait()
        killed_at = time.time()
        stored = len(set(pages.read(["page"])["page"].to_pylist()))
        output = finish(start(url, library))
        received = requests(url)
        again = finish(start(url, library))
        after = len(requests(url)) - len(received)
    finally:
        fake.kill()
    names = Counter(pages.read(["page"])["page"].to_pylist())
    before = {path for at, path in received if at <= killed_at}
    repeated = {path for at, path in received if at > killed_at} & before
    times = np.array([at for at, _ in received])
    first, second = times[times <= killed_at], times[times > killed_at]
    rows = [
        [len(run), peak_rate(run, 1), peak_rate(run, 5), len(run) / (run[-1] - run[0])]
        for run in (first, second)
    ]
    print(
        f"\n{ARTISTS} artists, limit {RATE}/s; killed with {stored} pages stored, {len(before)} requested\n"
    )
    heads = ["requests", "peak of 1 s (1/s)", "peak of 5 s (1/s)", "mean (1/s)"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".0f"))
    print(f"\n{len(names)} pages read, {sum(names.values()) - len(names)} of them stored twice;")
    print(
        f"{len(repeated)} pages were requested on both sides of the kill; a third crawl sent {after} requests"
    )
    print(output + again)
    assert len(names) == 2 * ARTISTS and len(repeated) <= len(before) - stored
    assert after == 0 and re.search(r" 0 pages read", again)
    artists = library.table("artists").read(["artist_id"])["artist_id"].to_pylist()
    assert len(set(artists)) == len(artists) >= ARTISTS - 1
