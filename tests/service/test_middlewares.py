from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import CLIPS, RUN, LocalService, local_service, problem, shared_library

from songray.library import Library, Vectors
from songray.service import middlewares
from songray.service.api_keys import VARIABLE
from songray.service.middlewares import SECURITY_HEADERS
from songray.service.options import IngressConfig

KEY = "open-sesame"


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"another, {KEY}")


def test_routes_need_a_bearer_key(indexed: Library, keys: None) -> None:
    with local_service(indexed, IngressConfig()) as url:
        for path in ("/v1/tracks", "/v1/stats", "/metrics", "/unknown"):
            missing = httpx.get(f"{url}{path}")
            assert problem(missing)[0] == 401 and missing.headers["WWW-Authenticate"] == "Bearer"
            for header in ("Bearer guess", f"Basic {KEY}", KEY):
                assert problem(httpx.get(f"{url}{path}", headers={"Authorization": header}))[0] == 401
        for path in ("/v1/tracks", "/v1/stats", "/metrics"):
            assert httpx.get(f"{url}{path}", headers={"Authorization": f"Bearer {KEY}"}).is_success
        for path in ("/healthz", "/readyz", "/", "/openapi.json"):
            assert httpx.get(f"{url}{path}").is_success


def test_metrics_and_access_log_record_requests_without_queries(
    indexed: Library, keys: None, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "requests.jsonl"
    key = {"Authorization": f"Bearer {KEY}"}
    with local_service(indexed, IngressConfig(access_log=str(log))) as url:
        httpx.get(f"{url}/v1/tracks", params={"q": "a secret"}, headers=key)
        httpx.get(f"{url}/v1/tracks/t:3/similar", headers=key)
        httpx.get(f"{url}/v1/stats")
        httpx.get(f"{url}/rest/ping", params={"apiKey": KEY})
        httpx.get(f"{url}/rest/ping", params={"u": "x", "p": KEY})
        httpx.head(f"{url}/v1/tracks/t:3/similar", headers=key)
        metrics = httpx.get(f"{url}/metrics", headers=key).text
    route = r'songray_requests_total\{method="%s",route="%s",status="%d"\} 1\.0'
    assert re.search(route % ("GET", "/v1/tracks", 200), metrics)
    assert re.search(route % ("GET", r"/v1/tracks/\{track_id:path\}/similar", 200), metrics)
    assert re.search(route % ("HEAD", r"/v1/tracks/\{track_id:path\}/similar", 200), metrics)
    assert re.search(route % ("any", "none", 401), metrics)
    assert f'songray_index_tracks{{run="{RUN}",version="000001"}} {CLIPS}.0' in metrics
    assert "songray_requests_underway 1.0" in metrics
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    recorded = [(entry["method"], entry["path"], entry["status"]) for entry in entries]
    assert recorded[:2] == [("GET", "/v1/tracks", 200), ("GET", "/v1/tracks/t:3/similar", 200)]
    assert recorded[2] == ("GET", "/v1/stats", 401)
    assert recorded[5] == ("HEAD", "/v1/tracks/t:3/similar", 200)
    assert "secret" not in log.read_text() and KEY not in log.read_text()


def test_a_body_that_arrives_too_slowly_is_rejected(
    indexed: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middlewares, "BODY_SECONDS", 0.3)
    with (
        local_service(indexed, IngressConfig()) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as connection,
    ):
        connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        response = connection.recv(4096)
        assert response.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in response
        assert httpx.get(f"{url}/healthz").is_success


def test_a_body_that_is_too_large_is_rejected(indexed: Library) -> None:
    with local_service(indexed, IngressConfig()) as url:
        too_large = httpx.post(f"{url}/v1/recommend", content=bytes((1 << 20) + 1))
        assert problem(too_large) == (413, "the body is larger than 1,048,576 bytes")
        upload = httpx.post(f"{url}/v1/similar", files={"audio": bytes((20 << 20) + (1 << 17))})
        assert problem(upload)[0] == 413


def test_other_origins_need_permission(indexed: Library, keys: None) -> None:
    headers = {"Origin": "https://x.test", "Access-Control-Request-Method": "GET"}
    allowed = []
    for origins in ((), ("https://x.test",)):
        with local_service(indexed, IngressConfig(cors_origins=origins)) as url:
            response = httpx.options(f"{url}/v1/tracks", headers=headers)
            allowed.append((response.is_success, response.headers.get("Access-Control-Allow-Origin")))
    assert allowed == [(False, None), (True, "https://x.test")]


def test_every_response_has_headers_for_browsers(indexed: Library, keys: None) -> None:
    with local_service(indexed, IngressConfig()) as url:
        key = {"Authorization": f"Bearer {KEY}"}
        responses = [httpx.get(f"{url}/v1/{path}", headers=key) for path in ("tracks", "tracks/x", "nothing")]
        responses += [httpx.get(f"{url}/v1/tracks"), httpx.post(f"{url}/v1/tracks", headers=key)]
        assert [response.status_code for response in responses] == [200, 404, 404, 401, 405]
        for response in responses:
            assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "script-src 'self';" in httpx.get(url).headers["Content-Security-Policy"]
        for documentation in ("docs", "redoc"):  # they would load scripts from elsewhere
            assert httpx.get(f"{url}/{documentation}", headers=key).status_code == 404


def test_every_route_that_answers_get_answers_head(indexed: Library) -> None:
    with local_service(indexed, IngressConfig()) as url:
        document = httpx.get(f"{url}/openapi.json").json()
        paths = [path.format(track_id="t:1") for path, item in document["paths"].items() if "get" in item]
        for path in [*paths, "/v1/path?from=t:1&to=t:20", "/v1/tracks/x", "/", "/openapi.json", "/rest/ping"]:
            got, asked = httpx.get(f"{url}{path}"), httpx.head(f"{url}{path}")
            assert (asked.status_code, asked.content) == (got.status_code, b""), path
            if path != "/metrics":  # which count these requests
                assert {**asked.headers, "date": ""} == {**got.headers, "date": ""}
        assert httpx.head(f"{url}/v1/recommend").status_code == 405


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "punycode", "no-such-codec", "utf-8"])
@pytest.mark.parametrize("place", ["form", "part"])
def test_the_name_of_an_upload_is_text_whatever_charset_is_claimed(
    indexed: Library, monkeypatch: pytest.MonkeyPatch, charset: str, place: str
) -> None:
    async def embed(service: LocalService, audio: bytes, run: str) -> Vectors:
        return np.eye(8, dtype=np.float32)[0]

    monkeypatch.setattr(LocalService, "embed", embed)
    claim = {place: f"; charset={charset}"}
    name = r"\ud800 +2AA- é"
    body = (
        f'--b\r\nContent-Disposition: form-data; name="audio"; filename="{name}"\r\n'
        f"Content-Type: audio/mpeg{claim.get('part', '')}\r\n\r\nx\r\n--b--\r\n"
    )
    headers = {"Content-Type": f"multipart/form-data{claim.get('form', '')}; boundary=b"}
    with local_service(indexed, IngressConfig()) as url:
        response = httpx.post(f"{url}/v1/similar", content=body.encode(), headers=headers)
        assert (response.status_code, response.json()["query"]) == (200, name)
