"""The download stage's batch function against a real HTTP server that fails in every way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from songray.previews import DownloadConfig, download_batch

SOUND = b"\xff\xfb" + bytes(range(256)) * 20
FAST = DownloadConfig(total_seconds=3, max_bytes=100_000)


class Failing(BaseHTTPRequestHandler):
    """/ok, /flaky (503 once), /status/<n>, /slow, /reset, /cut, /large, /none"""

    asked: ClassVar[Counter[str]] = Counter()

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        kind, _, rest = self.path[1:].partition("/")
        if kind == "slow":
            time.sleep(8)
        elif kind == "reset":
            self.connection.close()
        elif kind == "cut":
            self.answer(200, SOUND, length=2 * len(SOUND))
            self.close_connection = True
        elif kind == "flaky" and self.asked[self.path] == 1:
            self.answer(503, b"")
        elif kind == "status":
            self.answer(int(rest), b"no")
        else:
            self.answer(200, {"large": bytes(200_000), "none": b""}.get(kind, SOUND))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(*locations: str | None) -> tuple[list[dict[str, object]], list[str]]:
    Failing.asked.clear()
    rows = [{"track_key": n, "track_id": str(n), "location": place} for n, place in enumerate(locations)]
    schema = pa.schema({"track_key": pa.int64(), "track_id": pa.string(), "location": pa.string()})
    done, again = asyncio.run(download_batch(pa.Table.from_pylist(rows, schema), FAST))
    return done.to_pylist(), again


def test_bytes_come_with_their_size_and_hash(server: str) -> None:
    (row,), again = fetch(f"{server}/ok")
    assert row["audio"] == SOUND and not again
    assert (row["status"], row["size_bytes"], row["attempts"], row["error"]) == (200, len(SOUND), 1, None)
    assert len(row["sha256"]) == 64


@pytest.mark.parametrize(
    ("place", "error"),
    [("status/404", "http_404"), ("status/403", "http_403"), ("large", "too_large"), ("none", "empty")],
)
def test_what_failed_for_good_is_a_row_and_was_asked_for_once(server: str, place: str, error: str) -> None:
    (row,), again = fetch(f"{server}/{place}")
    assert (row["error"], row["audio"], again) == (error, None, [])
    assert row["detail"]
    assert Failing.asked[f"/{place}"] == 1


@pytest.mark.parametrize(
    ("place", "kind"),
    [("status/500", "http_500"), ("status/429", "http_429"), ("reset", "connection"), ("cut", "connection")],
)
def test_what_may_pass_is_tried_again_and_gets_no_row(server: str, place: str, kind: str) -> None:
    rows, again = fetch(f"{server}/{place}")
    assert (rows, again) == ([], [kind])
    assert Failing.asked[f"/{place}"] >= FAST.attempts  # aiohttp itself repeats a request that was reset


def test_a_failure_that_passes_is_no_failure(server: str) -> None:
    (row,), again = fetch(f"{server}/flaky")
    assert (row["error"], row["attempts"], again) == (None, 2, [])


def test_one_slow_file_holds_up_its_batch_no_longer_than_its_deadline(server: str) -> None:
    started = time.monotonic()
    rows, again = fetch(f"{server}/slow", f"{server}/ok")
    assert time.monotonic() - started < FAST.total_seconds + 2
    assert [row["track_id"] for row in rows] == ["1"]
    assert again == ["timeout"]


def test_a_server_that_is_not_there_may_come(server: str) -> None:
    assert fetch("http://127.0.0.1:9/x")[1] == ["connection"]


def test_a_file_in_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(SOUND)
    (tmp_path / "b.mp3").touch()
    places = [str(tmp_path / name) for name in ("a.mp3", "b.mp3", "c.mp3")]
    rows, again = fetch(*places, None, "no scheme://")
    assert [row["error"] for row in rows] == [None, "empty", "no_preview", "bad_url"]
    assert again == ["missing"]  # its disk may be mounted again
    assert (rows[0]["location"], rows[0]["audio"], rows[0]["size_bytes"]) == (places[0], None, len(SOUND))


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="attempts is 0"):
        DownloadConfig(attempts=0)
