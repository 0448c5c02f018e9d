"""The download stage against a real host of previews that fails in every way, and Deezer in between."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import ray
from fakes import previews, served
from fakes.deezer import FakeDeezer, isrc

from songray.audio.download import DownloadConfig, download, download_batch
from songray.audio.fetch import FetchConfig, is_audio
from songray.catalogue.sources.deezer import DeezerApi
from songray.catalogue.sources.registry import AudioServices
from songray.errors import InvalidOption, StageFailed
from songray.keys import track_key
from songray.library import Library
from songray.stages import Tally
from songray.tables import TABLES

pytestmark = pytest.mark.usefixtures("cluster")

SIZE = 20_000
FAST = FetchConfig(total_seconds=4, first_byte_seconds=2, max_bytes=1_000_000, host_requests_per_second=2000)


@pytest.fixture(scope="module")
def app() -> Any:
    return previews.application(SIZE)


@pytest.fixture(scope="module")
def host(app: Any) -> Iterator[str]:
    with served(app) as url:
        yield url


def tracks(*locations: str | None, source: str = "manifest", isrc: str | None = None) -> pa.Table:
    rows = [
        {"track_key": track_key(str(number), 0), "track_id": str(number), "revision": 0, "crawl": 1,
         "location": location, "isrc": isrc, "source": source}
        for number, location in enumerate(locations)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, pa.schema(TABLES["tracks"].columns))


@cache
def tally() -> ray.actor.ActorHandle:
    """One for all tests: it takes longer to start than most of them."""
    return ray.remote(Tally).options(num_cpus=0).remote()


def fetch(
    *locations: str | None, config: FetchConfig = FAST, removed: Set[str] = frozenset(), **more: Any
) -> tuple[list[dict[str, Any]], Counter[str]]:
    _, before = ray.get(tally().total.remote())
    pieces = list(download_batch(tracks(*locations, **more), config, tally(), removed))
    rows = [row for piece in pieces for row in piece.to_pylist()]
    _, after = ray.get(tally().total.remote())
    return sorted(rows, key=lambda row: int(row["track_id"])), after - before


def test_a_preview_is_stored_with_its_metadata(host: str) -> None:
    (row,), again = fetch(f"{host}/good/1")
    assert not again
    assert is_audio(row["audio"]) and len(row["audio"]) == row["size_bytes"] == SIZE
    assert (row["status"], row["attempts"], row["error"]) == (200, 1, None)
    assert len(row["sha256"]) == 32 and 0 < row["seconds"] < FAST.total_seconds


def test_a_permanent_failure_is_a_row_and_is_not_retried(app: Any, host: str) -> None:
    expected = {"missing": ("http_404", 1), "gone": ("http_410", 1), "expired": ("http_403", 1),
                "empty": ("empty", 1), "html": ("not_audio", 1), "loop": ("redirects", 6),
                "huge": ("too_large", 1)}  # fmt: skip
    paths = [f"/{behaviour}/for-good" for behaviour in expected]
    rows, again = fetch(*(f"{host}{path}" for path in paths))
    requests = [app[previews.REQUEST_COUNTS][path] for path in paths]
    errors = [row["error"] for row in rows]
    assert dict(zip(expected, zip(errors, requests, strict=True), strict=True)) == expected
    assert not again
    assert all(row["detail"] and row["audio"] is None for row in rows)


def test_a_retryable_failure_is_retried_gets_no_row_and_delays_nothing_else(app: Any, host: str) -> None:
    quick = ["broken", "reset", "truncated"]
    slow = [f"{kind}/{number}" for kind in ("drip", "silent", "wronglength") for number in range(5)]
    good = [f"good/{number}" for number in range(20)]
    names = [*(f"{behaviour}/may-pass" for behaviour in quick), *slow, *good]
    started = time.monotonic()
    rows, again = fetch(*(f"{host}/{name}" for name in names))
    assert time.monotonic() - started < FAST.total_seconds + 2  # one deadline
    assert [row["track_id"] for row in rows] == [str(names.index(name)) for name in good]
    assert again == {"http_500": 1, "connection": 2, "timeout": 15}
    for behaviour in quick:
        assert app[previews.REQUEST_COUNTS][f"/{behaviour}/may-pass"] >= FAST.attempts


def test_a_failure_whose_retry_succeeds_is_no_failure(host: str) -> None:
    behaviours = ["busy", "flaky", "resetonce", "moved"]
    rows, again = fetch(*(f"{host}/{behaviour}/1" for behaviour in behaviours))
    assert [(row["error"], row["size_bytes"]) for row in rows] == [(None, SIZE)] * len(behaviours)
    assert not again


def test_a_refused_connection_is_retryable() -> None:
    assert fetch("http://127.0.0.1:9/x")[1] == {"connection": 1}


def test_a_host_that_asks_for_a_long_pause_gets_no_more_requests() -> None:
    async def refuse(request: Any) -> Any:
        return previews.web.Response(status=429, headers={"Retry-After": "7200"})

    app = previews.web.Application()
    app.router.add_get("/{name}", refuse)
    with served(app) as url:
        started = time.monotonic()
        rows, again = fetch(*(f"{url}/{number}" for number in range(40)))
        assert time.monotonic() - started < FAST.total_seconds
    assert not rows and set(again) <= {"http_429", "rate_limited"} and again["rate_limited"]


def test_links_of_public_catalogues_lead_to_no_private_address(host: str) -> None:
    rows, _ = fetch(f"{host}/good/1", host.replace("127.0.0.1", "localhost") + "/good/1", source="spotify")
    assert [row["error"] for row in rows] == ["private_address"] * 2
    allowed = replace(FAST, private_addresses=True)
    assert fetch(f"{host}/good/1", source="spotify", config=allowed)[0][0]["error"] is None


def deezer(url: str) -> FetchConfig:
    api = DeezerApi(url, deezer_requests_per_second=10_000, deezer_pause_seconds=0.1)
    return replace(FAST, services=AudioServices(deezer=api), private_addresses=True)


def test_a_link_is_located_just_before_the_download() -> None:
    fake = FakeDeezer()
    fake.without_preview.add(4102)
    with served(fake.application()) as url:
        rows, again = fetch("deezer:4101", "deezer:4102", config=deezer(url), source="deezer")
    assert not again
    assert [(row["error"], row["audio_id"]) for row in rows] == [(None, "deezer:4101"), ("no_preview", None)]
    assert is_audio(rows[0]["audio"]) and "/preview/" in rows[0]["location"]


def test_an_expired_link_is_located_once_more() -> None:
    fake = FakeDeezer(link_seconds=-1)
    with served(fake.application()) as url:
        (row,), _ = fetch("deezer:4101", config=deezer(url), source="deezer")
    assert (row["error"], row["status"]) == ("expired", 403)
    assert Counter(fake.faults.paths)["/track/4101"] == 2


def test_a_track_without_a_location_is_located_by_its_isrc() -> None:
    with served(FakeDeezer().application()) as url:
        (row,), _ = fetch(None, config=deezer(url), source="spotify", isrc=isrc(4103))
        (unknown,), _ = fetch(None, config=deezer(url), source="spotify", isrc="XX0000000000")
        options = {"config": deezer(url), "removed": {"deezer:4103"}, "isrc": isrc(4103)}
        (refused,), _ = fetch(None, source="spotify", **options)
        assert (refused["error"], refused["audio"]) == ("removed", None)
        assert "4103" not in refused["detail"]
        none = replace(deezer(url), isrc_source="none")
        assert fetch(None, config=none, source="spotify", isrc=isrc(4103))[1] == {"no_location": 1}
    assert (row["error"], row["track_id"], row["audio_id"]) == (None, "0", "deezer:4103")
    assert unknown["error"] == "no_match"


def test_a_local_file_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(bytes(999))
    (tmp_path / "b.mp3").touch()
    places = [str(tmp_path / name) for name in ("a.mp3", "b.mp3", "c.mp3")]
    rows, again = fetch(*places, None, "no scheme://")
    assert [row["error"] for row in rows] == [None, "empty", "bad_url"]
    assert again == {"missing": 1, "no_location": 1}
    assert (rows[0]["location"], rows[0]["audio"], rows[0]["size_bytes"]) == (places[0], None, 999)


def test_a_public_catalogue_names_no_file_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(bytes(999))
    for source in ("deezer", "itunes", "spotify"):
        rows, again = fetch(str(path), f"file://{path}", "/dev/zero", source=source)
        assert [row["error"] for row in rows] == ["bad_url"] * 3 and not again
    fake = FakeDeezer()
    fake.previews[4101] = str(path)
    with served(fake.application()) as url:
        (row,), _ = fetch("deezer:4101", config=deezer(url), source="deezer")
    assert (row["error"], row["size_bytes"]) == ("bad_url", None)


@pytest.mark.parametrize("url", [
    "s3://bucket/etc/passwd", "file:///etc/passwd", "http://[bad/1.mp3", "http://a..b/1.mp3",
    f"http://{'x' * 70}.test/1.mp3", "http://x.test:99999/",
])  # fmt: skip
def test_what_is_no_http_url_is_a_failure_of_its_track(url: str, host: str) -> None:
    rows, again = fetch(url, f"{host}/good/1")
    assert [row["error"] for row in rows] == ["bad_url", None] and not again


def test_a_file_that_vanishes_or_is_no_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp3")
    (tmp_path / "link.mp3").symlink_to("link.mp3")
    places = [str(tmp_path / name) for name in ("pipe.mp3", "link.mp3", "x" * 300, "nul\0.mp3")]
    assert fetch(*places) == ([], {"missing": 4})


def test_looking_into_a_file_holds_nothing_else_and_has_a_deadline(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the files hangs whatever looks into it."""
    end = threading.Event()

    def look(body: bytes) -> bool:
        return end.wait(20) if body == hanging else is_audio(body)

    hanging = httpx.get(f"{host}/good/hang").content
    monkeypatch.setattr("songray.audio.fetch.is_audio", look)
    monkeypatch.setattr("songray.audio.fetch.PROBE_SECONDS", 0.5)
    started = time.monotonic()
    rows, again = fetch(f"{host}/good/hang", *(f"{host}/good/{number}" for number in range(20)))
    end.set()
    assert time.monotonic() - started < 10
    assert [row["error"] for row in rows] == [None] * 20
    assert again == {"timeout": 1}


def test_invalid_options_are_refused() -> None:
    with pytest.raises(InvalidOption, match="attempts is 0"):
        FetchConfig(attempts=0)


def test_the_stage_reports_failures_and_repeated_audio(library: Library, host: str) -> None:
    places = [f"{host}/{name}" for name in ("good/1", "good/1", "good/2", "missing/1", "broken/1", "html/1")]
    library.table("tracks").append(tracks(*places), "000001")
    summary = r"3 of 6 tracks failed(.|\n)*http_404 1(.|\n)*\n  1 of these have the same audio bytes"
    with pytest.raises(StageFailed, match=summary):
        download(library, DownloadConfig(FAST, max_failed_share=0.4))
    library.table("tracks").append(tracks(*places, f"{host}/good/2").slice(6), "000002")
    again = download(library, DownloadConfig(FAST, max_failed_share=1))
    assert (again.existing, again.done, again.retryable) == (5, 1, {"http_500": 1})
    assert "0 of these have the same audio bytes as another one of them" in str(again)
    assert download(library, DownloadConfig(FAST, max_failed_share=1, sample=2)).rows == 2
