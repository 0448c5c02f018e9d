"""The service over real HTTP, on an index of constructed vectors."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import free_port
from test_index import indexed  # noqa: F401

from songray.index import IndexConfig, index
from songray.library import Library
from songray.service.app import ServeConfig, served


@pytest.fixture
def client(cluster: None, indexed: Library) -> Iterator[httpx.Client]:  # noqa: F811
    index(indexed, IndexConfig())
    with served(indexed, ServeConfig(port=free_port())) as address, httpx.Client(base_url=address) as client:
        yield client


def test_the_service_answers(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {
        "status": "ok", "run": "mfcc-x", "version": "000001", "tracks": 300,
    }  # fmt: skip
    found = client.get("/v1/tracks", params={"q": "björk 12", "limit": 50}).json()["tracks"]
    assert "a:12" in [track["track_id"] for track in found]
    assert found[0]["preview"] is None and "/private" not in str(found)
    answer = client.get("/v1/tracks/a:12/similar", params={"k": 7}).json()
    assert answer["track"] == client.get("/v1/tracks/a:12").json()
    assert len(answer["similar"]) == 7
    similarities = [one["similarity"] for one in answer["similar"]]
    assert similarities == sorted(similarities, reverse=True)
    assert all(0 <= similarity <= 1 for similarity in similarities)
    assert len(client.get("/v1/tracks/a:12/similar").json()["similar"]) == 10
    for path in ("/v1/tracks/a:999", "/v1/tracks/a:999/similar"):
        missing = client.get(path)
        assert (missing.status_code, "a:999 is not in the index" in missing.json()["detail"]) == (404, True)
    for k in (0, 501, "x"):
        assert client.get("/v1/tracks/a:12/similar", params={"k": k}).status_code == 422
    assert client.get("/docs").status_code == 200
    assert "/v1/tracks/{track_id}/similar" in client.get("/openapi.json").json()["paths"]
    assert "what sounds like this?" in client.get("/").text
    assert_page(str(client.base_url))


def assert_page(address: str) -> None:
    """The page in a real browser: its list of songs, and, by a song's own address, what sounds like it."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium: the page was not looked at")
    assert "The Knife" in shown(browser, address)
    song = shown(browser, f"{address}#a%3A12")
    assert "These sound most like “Björk 12” by The Knife" in song
    assert song.count('class="bar"') == 20


def shown(browser: str, url: str) -> str:
    """What a browser makes of a page once its requests are answered."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
        return subprocess.run([browser, *options, url], capture_output=True, text=True, timeout=60).stdout


def test_a_port_that_is_taken_is_named(cluster: None, indexed: Library) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        index(indexed, IndexConfig())
        with (
            pytest.raises(ValueError, match=f"--port {port} on 127.0.0.1"),
            served(indexed, ServeConfig(port=port)),
        ):
            pass


def test_no_index_no_service(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run jobs/train\.py first"), served(library, ServeConfig()):
        pass
