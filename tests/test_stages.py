"""Resume and increment: what a stage does again, and what not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from conftest import job, tone
from samples import add_previews

from songray.audio.download import DownloadConfig, download
from songray.audio.fetch import FetchConfig
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.errors import StageFailed
from songray.library import Library
from songray.summary import Summary
from songray.table import Table

ROOT = Path(__file__).resolve().parents[1]


class Slow(BaseHTTPRequestHandler):
    """Answers after a while with a short sound; a name that ends in 7 is missing, in 3 overloaded."""

    sound = b""
    requests: ClassVar[Counter[str]] = Counter()
    seconds = 0.0
    overloaded = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        time.sleep(self.seconds)
        status = (
            404 if self.path.endswith("7") else 503 if self.overloaded and self.path.endswith("3") else 200
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(self.sound)))
        self.end_headers()
        self.wfile.write(self.sound)


@pytest.fixture
def server(tmp_path: Path) -> str:
    Slow.sound = tone(tmp_path / "sound.mp3", seconds=1).read_bytes()
    Slow.requests, Slow.seconds, Slow.overloaded = Counter(), 0.0, True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def catalogue(library: Library, server: str, count: int) -> None:
    path = Path(library.root, "songs.csv")
    path.write_text("id,url\n" + "".join(f"{n},{server}/{n}\n" for n in range(count)))
    crawl(library, ManifestSource(str(path)), CrawlConfig())


def ids(table: Table) -> Counter[str]:
    return Counter(table.read(["track_id"])["track_id"].to_pylist())


@pytest.mark.usefixtures("cluster")
def test_a_stage_processes_what_its_output_lacks(library: Library, server: str) -> None:
    catalogue(library, server, 40)
    first = download(library, DownloadConfig(FetchConfig(attempts=1)))
    assert (first.rows, first.existing, first.done) == (40, 0, 32)
    assert (first.failed, first.retryable) == (Counter(http_404=4), Counter(http_503=4))
    Slow.overloaded = False
    second = download(library, DownloadConfig())  # retries what is retryable, and no permanent failure
    assert (second.existing, second.done, second.failed.total()) == (36, 4, 0)
    assert Slow.requests["/7"] == 1
    catalogue(library, server, 50)
    third = download(library, DownloadConfig())
    assert (third.rows, third.existing, third.done, third.failed) == (50, 40, 9, Counter(http_404=1))
    assert ids(library.table("previews")) == Counter({f"manifest:{n}": 1 for n in range(50)})
    made = transform(library, TransformConfig())
    assert (made.rows, made.done) == (45, 45)
    idle = transform(library, TransformConfig())
    assert (idle.existing, idle.done) == (45, 0)


@pytest.mark.usefixtures("cluster")
def test_only_the_newest_revision_and_row_of_a_track_count(library: Library, server: str) -> None:
    catalogue(library, server, 3)
    path = Path(library.root, "songs.csv")
    path.write_text(f"id,url,title\n0,{server}/0,renamed\n1,{server}/1b,\n2,{server}/2,\n")
    crawl(library, ManifestSource(str(path)), CrawlConfig())
    summary = download(library, DownloadConfig())
    assert (summary.rows, summary.done) == (3, 3)
    assert Slow.requests == Counter({"/0": 1, "/1b": 1, "/2": 1})


@pytest.mark.usefixtures("cluster")
def test_files_without_pending_rows_are_not_opened(library: Library, server: str) -> None:
    catalogue(library, server, 2)
    download(library, DownloadConfig())
    transform(library, TransformConfig())
    (done,) = library.table("previews").files()
    catalogue(library, server, 4)
    download(library, DownloadConfig(FetchConfig(attempts=1)))
    whole = Path(done).read_bytes()
    keys = pa.parquet.read_table(done).set_column(2, "audio", pa.array([b"spoiled"] * 2, pa.large_binary()))
    pa.parquet.write_table(keys, done)
    assert transform(library, TransformConfig()).done == 1  # of 2 and 3, the latter is overloaded
    Path(done).write_bytes(whole)


@pytest.mark.usefixtures("cluster")
def test_a_row_that_repeats_a_key_is_processed_once(library: Library, tmp_path: Path) -> None:
    sound = tone(tmp_path / "sound.wav", 1).read_bytes()
    add_previews(library, [sound] * 3, [1, 2, 1])
    assert transform(library, TransformConfig()).done == 2
    assert ids(library.table("spectrograms", "default")) == Counter({"a:1": 1, "a:2": 1})


def kill_when(process: subprocess.Popen[bytes], table: Table, rows: int) -> np.ndarray:
    """SIGKILL once the table has so many finished rows; their keys, all those of the moment after."""
    deadline = time.monotonic() + 120
    while table.finished_keys().size < rows:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(2)  # workers notice
    return table.finished_keys()


@pytest.mark.slow
def test_a_killed_stage_continues(library: Library, server: str, cluster: None) -> None:
    catalogue(library, server, 200)
    Slow.seconds, Slow.overloaded = 0.3, False
    previews = library.table("previews")
    options = ("--rows-per-file", "16", "--downloads-per-worker", "16", "--workers", "1")
    finished = kill_when(job("download", library, *options), previews, 32)
    assert 32 <= finished.size < 200
    before = Slow.requests.copy()
    Slow.seconds = 0
    summary = download(library, DownloadConfig())
    assert (summary.rows, summary.existing) == (200, finished.size)
    assert ids(previews) == Counter({f"manifest:{n}": 1 for n in range(200)})
    requested_again = {path for path, count in Slow.requests.items() if count > 1 and before[path]}
    done = {row["track_id"].replace("manifest:", "/") for row in rows_of(previews, finished)}
    assert not requested_again & done
    assert len(requested_again) <= 64  # concurrent downloads of the killed run


def rows_of(table: Table, keys: np.ndarray) -> list[dict[str, object]]:
    rows = table.read(["track_key", "track_id"])
    return rows.filter(pa.array(np.isin(rows["track_key"].to_numpy(), keys))).to_pylist()


def test_a_summary_adds_up_and_limits_failures() -> None:
    summary = Summary("download", 10, 2, 5, Counter(http_404=2), Counter(timeout=1), 2.0)
    assert str(summary) == (
        "download: 10 tracks = 2 finished before + 5 finished now + 2 failed (http_404 2) "
        "+ 1 to be retried (timeout 1) (2.0 s, 4.0/s)"
    )
    summary.check(0.5)
    with pytest.raises(StageFailed, match="3 of 10 tracks failed"):
        summary.check(0.25)


def test_a_few_new_rows_are_judged_with_those_before_and_what_waits_is_no_failure() -> None:
    Summary("download", 1001, existing=1000, failed=Counter(not_audio=1)).check(0.5)
    with pytest.raises(StageFailed, match="1 of 1 tracks failed"):
        Summary("download", 1, failed=Counter(not_audio=1)).check(0.5)
    with pytest.raises(StageFailed, match="100 of 100 tracks failed"):
        Summary("download", 10_100, existing=10_000, failed=Counter(http_403=100)).check(0.5)
    waiting = Counter(no_location=900, http_429=50)
    Summary("download", 1000, done=50, retryable=waiting).check(0.0)
    with pytest.raises(StageFailed, match="200 of 200 tracks failed"):
        Summary("download", 1000, retryable=waiting + Counter(timeout=200)).check(0.5)


def test_a_stage_without_pending_rows_never_loads_ray(library: Library) -> None:
    code = f"""
import sys
from songray.audio.transform import TransformConfig, transform
from songray.library import Library
print(transform(Library.open({library.root!r}), TransformConfig()))
assert "ray" not in sys.modules
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.startswith("transform: 0 tracks = 0 finished before"), output.stderr
