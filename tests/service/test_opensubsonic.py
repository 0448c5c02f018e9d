"""OpenSubsonic by its own client, and by hand where that cannot go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import libopensonic
import pytest
from libopensonic.errors import DataNotFoundError, SonicError
from listening import SOUNDS, answering, listening

from songray.library import Library
from songray.service.app import IngressConfig
from songray.service.middleware import KEYS

KEY = "open-sesame"


@pytest.fixture(scope="module")
def sounds(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return listening(tmp_path_factory.mktemp("listening"))


@pytest.fixture(scope="module")
def url(sounds: Library) -> Iterator[str]:
    with answering(sounds, IngressConfig()) as url:
        yield url


@pytest.fixture(scope="module")
def locked(sounds: Library) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEYS, f"another, {KEY}")
        with answering(sounds, IngressConfig()) as url:
            yield url


def connected(url: str, **options: object) -> libopensonic.Connection:
    host, _, port = url.rpartition(":")
    return libopensonic.Connection(host, port=int(port), **options)


@pytest.mark.parametrize("use_get", [True, False])
@pytest.mark.parametrize("use_views", [True, False])
def test_a_player_asks(url: str, use_get: bool, use_views: bool) -> None:
    player = connected(url, username="anna", password="any", use_get=use_get, use_views=use_views)
    assert player.ping()
    known = {one.name: one.versions for one in player.get_open_subsonic_extensions()}
    assert known["sonicSimilarity"] == [1]
    similar = player.get_sonic_similar_tracks("t:12", count=7)
    assert len(similar) == 7 and "t:12" not in [one.entry.id for one in similar]
    similarities = [one.similarity for one in similar]
    assert all(0 <= similarity <= 1 for similarity in similarities)
    entry = next(one.entry for one in similar if one.entry.id == "t:13")
    assert (entry.title, entry.artist, entry.year, entry.genre, entry.duration, entry.is_dir) == (
        "Björk 13", "The Knife 3", 1993, "Electro", 113, False,
    )  # fmt: skip
    path = player.find_sonic_path("t:0", "t:23", count=6)
    assert (len({one.entry.id for one in path}), path[0].entry.id, path[-1].entry.id) == (6, "t:0", "t:23")
    assert path[0].similarity == 1
    assert 2 < len(player.find_sonic_path("t:0", "t:23", count=400)) <= SOUNDS
    with pytest.raises(DataNotFoundError, match="t:999"):
        player.get_sonic_similar_tracks("t:999")
    with pytest.raises(SonicError, match="no method getLyrics"):
        player.get_lyrics()
    player.cleanup()


def test_each_kind_of_key_opens(locked: str) -> None:
    for options in (
        {"api_key": KEY},
        {"username": "anna", "password": KEY},
        {"username": "anna", "password": KEY, "legacy_auth": True},
    ):
        player = connected(locked, **options)
        assert player.ping()
        player.cleanup()
    thief = connected(locked, username="anna", password="guess")
    with pytest.raises(SonicError):
        thief.ping()
    assert thief.get_open_subsonic_extensions()  # which are public
    thief.cleanup()


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
def test_what_fails_has_its_code(locked: str, parameters: dict[str, str], code: int) -> None:
    answer = httpx.get(f"{locked}/rest/getSonicSimilarTracks", params={"f": "json", **parameters})
    assert answer.status_code == 200
    body = answer.json()["subsonic-response"]
    assert (body["status"], body["error"]["code"]) == ("failed", code)


def test_other_questions_take_a_bearer_key(locked: str) -> None:
    for path in ("/v1/tracks", "/v1/stats", "/metrics"):
        assert httpx.get(f"{locked}{path}").status_code == 401
        assert httpx.get(f"{locked}{path}", headers={"Authorization": "Bearer guess"}).status_code == 401
        known = httpx.get(f"{locked}{path}", headers={"Authorization": f"Bearer {KEY}"})
        assert known.status_code == 200
    for path in ("/healthz", "/readyz", "/", "/openapi.json"):
        assert httpx.get(f"{locked}{path}").status_code == 200
