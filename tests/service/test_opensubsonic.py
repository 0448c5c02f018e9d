"""OpenSubsonic by a client library, and by requests where that cannot send them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import libopensonic
import pytest
from libopensonic.errors import DataNotFoundError, SonicError
from serving import CLIPS, local_service, shared_library

from songray.library import Library
from songray.service.api_keys import VARIABLE
from songray.service.options import IngressConfig

KEY = "open-sesame"


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
    assert all(0 <= match.similarity <= 1 for match in path)
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
    ],
)
def test_each_failure_has_its_code(locked: str, parameters: dict[str, str], code: int) -> None:
    response = httpx.get(f"{locked}/rest/getSonicSimilarTracks", params={"f": "json", **parameters})
    assert response.status_code == 200
    body = response.json()["subsonic-response"]
    assert (body["status"], body["error"]["code"]) == ("failed", code)
