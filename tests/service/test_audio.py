"""Links to audio: signed, and valid for a while."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from serving import local_service, problem, shared_library

from songray.library import Library
from songray.service import audio
from songray.service.api_keys import VARIABLE, ApiKeys
from songray.service.audio import LINK_SECONDS, AudioLinks
from songray.service.options import IngressConfig


def parts(link: str) -> tuple[int, str]:
    query = parse_qs(urlsplit(link).query)
    return int(query["expires"][0]), query["signature"][0]


def test_a_link_is_valid_for_its_track_and_for_an_hour_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_123.0
    monkeypatch.setattr(audio.time, "time", lambda: now)
    links = AudioLinks(ApiKeys(["a", "b"]))
    expires, signature = parts(links.create("t:1"))
    assert LINK_SECONDS <= expires - now <= 2 * LINK_SECONDS
    assert AudioLinks(ApiKeys(["b", "a"])).verify("t:1", expires, signature)  # of another replica
    assert not links.verify("t:2", expires, signature)
    assert not links.verify("t:1", expires + 1, signature)
    assert not AudioLinks(ApiKeys(["a"])).verify("t:1", expires, signature)
    now = float(expires)
    assert not links.verify("t:1", expires, signature)


def test_where_a_key_is_needed_audio_needs_a_link(
    cluster: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    library: Library = shared_library(tmp_path_factory)[0]
    monkeypatch.setenv(VARIABLE, "key")
    with local_service(library, IngressConfig()) as url:
        assert problem(httpx.get(f"{url}/v1/tracks/t:3/audio"))[0] == 401
        assert problem(httpx.get(f"{url}/audio/t:3"))[0] == 403
        link = httpx.get(f"{url}/v1/tracks/t:3/audio", headers={"Authorization": "Bearer key"}).json()["url"]
        assert "key" not in link and httpx.get(url + link).status_code == 200
        status, detail = problem(httpx.get(url + link.replace("3", "4", 1)))
        assert status == 403 and "has expired, or is not signed" in detail
        for file in ("app.js", "style.css", "icon.svg"):  # the page asks for the key
            assert httpx.get(f"{url}/page/{file}").status_code == 200
        assert httpx.get(f"{url}/page/../api_keys.py").status_code in (401, 404)
