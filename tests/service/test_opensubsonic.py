"""OpenSubsonic by a client library, and by requests where that cannot send them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import jsonschema
import libopensonic
import pytest
import referencing
from conftest import ROOT
from libopensonic.errors import DataNotFoundError, SonicError
from serving import CLIPS, local_service, shared_library

from songray.library import Library
from songray.search.rows import SHOWN
from songray.service.api_keys import VARIABLE
from songray.service.opensubsonic import child, write_xml
from songray.service.options import IngressConfig

KEY = "open-sesame"
SPECIFICATION = ROOT.parent / "shared" / "opensubsonic" / "openapi"
NAMESPACE = {"s": "http://subsonic.org/restapi"}


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def url(indexed: Library) -> Iterator[str]:
    with local_service(indexed, IngressConfig()) as url:
        yield url


@pytest.fixture(scope="module")
def locked(indexed: Library) -> Iterator[str]:
    """The URL of a service that needs a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"another, {KEY}")
        with local_service(indexed, IngressConfig()) as url:
            yield url


def connect(url: str, **options: object) -> libopensonic.Connection:
    host, _, port = url.rpartition(":")
    return libopensonic.Connection(host, port=int(port), **options)


@pytest.mark.parametrize("use_get", [True, False])
@pytest.mark.parametrize("use_views", [True, False])
def test_the_extension_sonic_similarity(url: str, use_get: bool, use_views: bool) -> None:
    connection = connect(url, username="anna", password="any", use_get=use_get, use_views=use_views)
    assert connection.ping()
    extensions = {item.name: item.versions for item in connection.get_open_subsonic_extensions()}
    assert extensions["sonicSimilarity"] == [1]
    similar = connection.get_sonic_similar_tracks("t:12", count=7)
    assert len(similar) == 7 and "t:12" not in [match.entry.id for match in similar]
    similarities = [match.similarity for match in similar]
    assert all(0 <= similarity <= 1 for similarity in similarities)
    assert similarities == sorted(similarities, reverse=True)
    entry = next(match.entry for match in similar if match.entry.id == "t:13")
    assert (entry.title, entry.artist, entry.year, entry.genre, entry.duration, entry.is_dir) == (
        "Björk 13", "The Knife 3", 1993, "Electro", 113, False,
    )  # fmt: skip
    path = connection.find_sonic_path("t:0", "t:23", count=6)
    ids = [match.entry.id for match in path]
    assert (len(set(ids)), ids[0], ids[-1]) == (6, "t:0", "t:23")
    assert path[0].similarity == pytest.approx(1, abs=1e-6)
    assert all(0 <= match.similarity < 1 for match in path[1:])
    to_start = {match.entry.id: match.similarity for match in connection.get_sonic_similar_tracks("t:0", 400)}
    for match in path[1:]:
        assert match.similarity == pytest.approx(to_start.get(match.entry.id, match.similarity), abs=1e-5)
    assert 2 < len(connection.find_sonic_path("t:0", "t:23", count=400)) <= CLIPS
    with pytest.raises(DataNotFoundError, match="t:999"):
        connection.get_sonic_similar_tracks("t:999")
    with pytest.raises(SonicError, match="no method getLyrics"):
        connection.get_lyrics()
    connection.cleanup()


def test_each_kind_of_key_is_accepted(locked: str) -> None:
    for options in (
        {"api_key": KEY},
        {"username": "anna", "password": KEY},
        {"username": "anna", "password": KEY, "legacy_auth": True},
    ):
        connection = connect(locked, **options)
        assert connection.ping()
        connection.cleanup()
    wrong = connect(locked, username="anna", password="guess")
    with pytest.raises(SonicError):
        wrong.ping()
    assert wrong.get_open_subsonic_extensions()  # which need no key
    wrong.cleanup()


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({}, 10),
        ({"apiKey": "guess"}, 44),
        ({"apiKey": KEY, "u": "anna"}, 43),
        ({"u": "anna", "p": "guess"}, 40),
        ({"u": "anna", "p": "enc:zz"}, 40),
        ({"u": "anna", "t": hashlib.md5(b"guesssalt").hexdigest(), "s": "salt"}, 40),
        ({"apiKey": KEY}, 10),
        ({"apiKey": KEY, "id": "t:1", "count": "many"}, 0),
        ({"apiKey": KEY, "id": "t:1", "count": "-1"}, 0),
    ],
)
def test_each_failure_has_its_code(locked: str, parameters: dict[str, str], code: int) -> None:
    response = httpx.get(f"{locked}/rest/getSonicSimilarTracks", params={"f": "json", **parameters})
    assert response.status_code == 200
    body = response.json()["subsonic-response"]
    assert (body["status"], body["error"]["code"]) == ("failed", code)


def request(url: str, method: str, **parameters: object) -> dict[str, Any]:
    response = httpx.get(f"{url}/rest/{method}", params={"f": "json", **parameters})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    body: dict[str, Any] = response.json()["subsonic-response"]
    return body


def test_count_is_the_maximum_number_of_tracks(url: str) -> None:
    for count in (0, 1, 2):
        assert len(request(url, "getSonicSimilarTracks", id="t:1", count=count)["sonicMatch"]) == count
    ends = {"startSongId": "t:0", "endSongId": "t:23"}
    for count, ids in ((1, ["t:0"]), (2, ["t:0", "t:23"])):
        path = request(url, "findSonicPath", **ends, count=count)["sonicMatch"]
        assert [match["entry"]["id"] for match in path] == ids
    assert request(url, "findSonicPath", **ends, count=0)["error"] == {
        "code": 0, "message": "count is 0: must be at least 1",
    }  # fmt: skip


def test_the_format_is_xml_unless_json_is_requested(url: str) -> None:
    parameters: dict[str, object] = {"id": "t:12", "count": 3}
    body = request(url, "getSonicSimilarTracks", **parameters)
    for more in ({}, {"f": "xml"}):
        response = httpx.get(f"{url}/rest/getSonicSimilarTracks", params=parameters | more)
        assert response.headers["content-type"] == "text/xml; charset=utf-8"
        root = ElementTree.fromstring(response.content)
        assert root.tag == f"{{{NAMESPACE['s']}}}subsonic-response"
        assert (root.get("status"), root.get("openSubsonic"), root.get("version")) == ("ok", "true", "1.16.1")
        for match, expected in zip(root.findall("s:sonicMatch", NAMESPACE), body["sonicMatch"], strict=True):
            assert float(match.get("similarity", "")) == expected["similarity"]
            (entry,) = match
            names = ("id", "title", "artist", "genre")
            assert {name: entry.get(name) for name in names} == {
                name: expected["entry"][name] for name in names
            }
            assert entry.get("isDir") == "false"
            genres = [genre.get("name") for genre in entry.findall("s:genres", NAMESPACE)]
            assert genres == [genre["name"] for genre in expected["entry"]["genres"]]


@pytest.mark.parametrize("format", ["jsonp", "yaml", ""])
def test_another_format_is_refused_in_xml(url: str, format: str) -> None:
    response = httpx.get(f"{url}/rest/ping", params={"f": format, "callback": "steal"})
    (error,) = ElementTree.fromstring(response.content)
    assert (error.get("code"), error.get("message")) == ("0", f"f is {format!r}: must be xml or json")


def test_extensions_are_listed_in_both_formats(url: str) -> None:
    root = ElementTree.fromstring(httpx.get(f"{url}/rest/getOpenSubsonicExtensions").content)
    listed = {extension.get("name"): [int(item.text or "") for item in extension] for extension in root}
    extensions = request(url, "getOpenSubsonicExtensions")["openSubsonicExtensions"]
    assert listed == {extension["name"]: extension["versions"] for extension in extensions}


def test_characters_that_xml_forbids_are_left_out() -> None:
    root = ElementTree.fromstring(write_xml({"entry": {"title": 'a\x00\x0b\uffff<&"\n𝄞'}}))
    assert root[0].get("title") == 'a<&"\n𝄞'


@pytest.mark.parametrize("value", [None, 0.0, float("nan"), float("inf")])
def test_a_track_of_which_nothing_is_known_has_the_required_fields(value: float | None) -> None:
    lists = {"artist_ids": [], "artist_names": [], "genres": []}
    row = dict.fromkeys(SHOWN) | lists | {"track_id": "t:1", "duration_seconds": value}
    assert child(row) == {
        "id": "t:1", "isDir": False, "title": "", "type": "music", "mediaType": "song", "genres": [],
        "isrc": [], "explicitStatus": "",
    }  # fmt: skip


def test_values_that_are_no_text_find_nothing(url: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="id"\r\n\r\n\\ud800\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    response = httpx.post(f"{url}/rest/getSonicSimilarTracks?f=json", content=body, headers=headers)
    assert response.json()["subsonic-response"]["error"]["code"] == 70


@pytest.fixture(scope="module")
def validate() -> Callable[[dict[str, Any], str], None]:
    """Validates a response against the response of a method in the OpenAPI document of OpenSubsonic."""
    if not SPECIFICATION.is_dir():
        pytest.skip(f"no OpenAPI document of OpenSubsonic at {SPECIFICATION}")

    def retrieve(uri: str) -> referencing.Resource[Any]:
        content = json.loads(Path(uri.removeprefix("file://")).read_text())
        return referencing.Resource(content, referencing.jsonschema.DRAFT202012)

    registry: referencing.Registry[Any] = referencing.Registry(retrieve=retrieve)

    def validate(body: dict[str, Any], path: str) -> None:
        schema = {"$ref": SPECIFICATION.joinpath(path).as_uri()}
        jsonschema.Draft202012Validator(schema, registry=registry).validate({"subsonic-response": body})

    return validate


@pytest.mark.parametrize(
    ("method", "parameters", "status"),
    [
        ("getSonicSimilarTracks", {"id": "t:3"}, "ok"),
        ("getSonicSimilarTracks", {"id": "t:3", "count": 0}, "ok"),
        ("getSonicSimilarTracks", {"id": "t:999"}, "failed"),
        ("findSonicPath", {"startSongId": "t:3", "endSongId": "t:20"}, "ok"),
        ("findSonicPath", {"startSongId": "t:3"}, "failed"),
        ("getOpenSubsonicExtensions", {}, "ok"),
        ("tokenInfo", {}, "ok"),
        ("ping", {}, "ok"),
    ],
)
def test_responses_are_those_of_the_specification(
    url: str,
    validate: Callable[[dict[str, Any], str], None],
    method: str,
    parameters: dict[str, object],
    status: str,
) -> None:
    schemas = {
        "ping": "schemas/SubsonicResponse.json",
        "tokenInfo": "endpoints/tokenInfo/GetTokenInfoResponse.json",
    }
    path = schemas.get(method, f"endpoints/{method}/{method[0].upper()}{method[1:]}Response.json")
    body = request(url, method, **parameters)
    validate(body, path)
    assert body["status"] == status
    if status == "ok":
        with pytest.raises(jsonschema.ValidationError):
            validate({**body, "openSubsonic": None}, path)
    known = json.loads(SPECIFICATION.joinpath("schemas/Child.json").read_text())["properties"].keys()
    assert all(match["entry"].keys() <= known for match in body.get("sonicMatch", []))
