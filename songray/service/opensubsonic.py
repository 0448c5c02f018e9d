"""OpenSubsonic's `sonicSimilarity`, so that players which know it can ask: https://opensubsonic.netlify.app

Their protocol has its own ways: parameters by GET or as a form, failures with HTTP 200, keys among the
parameters. Answers are JSON.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response

from songray.errors import NotEnoughTracks, UnknownTrack
from songray.search import ranking as recommender
from songray.search.ranking import RankingOptions, Searcher
from songray.search.shard import EVERYTHING, Row

API_VERSION = "1.16.1"
EXTENSIONS = ("sonicSimilarity", "formPost", "apiKeyAuthentication")
MOST = 500  # tracks of one answer
GENERIC, MISSING, WRONG_PASSWORD, CONFLICT, WRONG_KEY, NOT_FOUND = 0, 10, 40, 43, 44, 70

Parameters = Mapping[str, str]
Method = Callable[[Searcher, Parameters], Awaitable[dict[str, Any]]]


class Failed(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def router(searcher: Callable[[], Searcher], keys: frozenset[str]) -> APIRouter:
    """Answers under /rest, to those who have one of the keys, if there are any."""
    routes = APIRouter(prefix="/rest", include_in_schema=False)

    @routes.api_route("/{name}", methods=["GET", "POST"])
    async def method(name: str, request: Request) -> Response:
        parameters = {**request.query_params}
        if request.method == "POST":
            async with request.form(max_files=0) as form:
                parameters |= {key: value for key, value in form.items() if isinstance(value, str)}
        try:
            return _answer("ok", await _content(name.removesuffix(".view"), parameters, searcher, keys))
        except Failed as failed:
            return _answer("failed", {"error": {"code": failed.code, "message": str(failed)}})

    return routes


def _answer(status: str, content: dict[str, Any]) -> Response:
    about = {"status": status, "version": API_VERSION, "type": "songray", "serverVersion": _version()}
    body = {"subsonic-response": {**about, "openSubsonic": True, **content}}
    return Response(orjson.dumps(body), media_type="application/json")


def _version() -> str:
    try:
        return version("songray")
    except PackageNotFoundError:
        return "unknown"


async def _content(
    name: str, parameters: Parameters, searcher: Callable[[], Searcher], keys: frozenset[str]
) -> dict[str, Any]:
    if name == "getOpenSubsonicExtensions":  # which alone is for everybody
        return {"openSubsonicExtensions": [{"name": one, "versions": [1]} for one in EXTENSIONS]}
    check_key(parameters, keys)
    if name not in METHODS:
        raise Failed(GENERIC, f"songray has no method {name}: it has {', '.join(METHODS)}")
    try:
        return await METHODS[name](searcher(), parameters)
    except UnknownTrack as error:
        raise Failed(NOT_FOUND, f"track not found: {error}") from error


def check_key(parameters: Parameters, keys: frozenset[str]) -> None:
    """Raise Failed unless the parameters hold one of the keys: as apiKey, as the password p, plain or in
    hex, or as the token t = md5(password + salt s)."""
    if not keys:
        return
    if api_key := parameters.get("apiKey"):
        if parameters.keys() & {"u", "p", "t", "s"}:
            raise Failed(CONFLICT, "give either apiKey, or u with p or with t and s")
        if not matches(api_key, keys):
            raise Failed(WRONG_KEY, "apiKey is not a key of this service")
    elif token := parameters.get("t"):
        salt = parameters.get("s", "")
        if not matches(token, {hashlib.md5((key + salt).encode()).hexdigest() for key in keys}):
            raise Failed(WRONG_PASSWORD, "t is not the token of a key of this service")
    elif password := parameters.get("p"):
        if not matches(_plain(password), keys):
            raise Failed(WRONG_PASSWORD, "p is not a key of this service")
    else:
        raise Failed(MISSING, "a key is needed: as apiKey, p, or t with s")


def matches(given: str, keys: frozenset[str] | set[str]) -> bool:
    """Whether it is one of the keys, in a time that does not depend on how much of one it has right."""
    return any([hmac.compare_digest(given.encode(), key.encode()) for key in keys])


def _plain(password: str) -> str:
    if not password.startswith("enc:"):
        return password
    try:
        return bytes.fromhex(password.removeprefix("enc:")).decode()
    except ValueError:
        return ""


async def _ping(searcher: Searcher, parameters: Parameters) -> dict[str, Any]:
    return {}


async def _token_info(searcher: Searcher, parameters: Parameters) -> dict[str, Any]:
    return {"tokenInfo": {"username": "songray"}}


async def _similar(searcher: Searcher, parameters: Parameters) -> dict[str, Any]:
    wish = RankingOptions(k=_count(parameters, 10, 1))
    found = await recommender.similar(searcher, _required(parameters, "id"), wish)
    return {"sonicMatch": [{"entry": child(one.track), "similarity": one.similarity} for one in found]}


async def _path(searcher: Searcher, parameters: Parameters) -> dict[str, Any]:
    """The similarity of each is with the one before it."""
    start, end = _required(parameters, "startSongId"), _required(parameters, "endSongId")
    if start == end:
        raise Failed(GENERIC, "startSongId and endSongId are the same")
    rows = await _longest_path(searcher, start, end, _count(parameters, 25, 2))
    vectors = (await recommender.find(searcher, [row["track_id"] for row in rows])).vectors
    cosines = [1.0, *np.einsum("td,td->t", vectors[1:], vectors[:-1]).tolist()]
    steps = zip(rows, map(recommender.similarity, cosines), strict=True)
    return {"sonicMatch": [{"entry": child(row), "similarity": similarity} for row, similarity in steps]}


async def _longest_path(searcher: Searcher, start: str, end: str, most: int) -> list[Row]:
    """Of that many steps; of half as many, and so on, where there are not enough tracks."""
    try:
        return await recommender.path(searcher, start, end, most, EVERYTHING)
    except NotEnoughTracks:
        return await _longest_path(searcher, start, end, max(2, most // 2))


METHODS: dict[str, Method] = {
    "ping": _ping,
    "tokenInfo": _token_info,
    "getSonicSimilarTracks": _similar,
    "findSonicPath": _path,
}


def _required(parameters: Parameters, name: str) -> str:
    if not (value := parameters.get(name)):
        raise Failed(MISSING, f"the parameter {name} is missing")
    return value


def _count(parameters: Parameters, default: int, least: int) -> int:
    text = parameters.get("count", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Failed(GENERIC, f"count is {text[:20]!r}: a number is needed")
    return min(max(int(text), least), MOST)


def child(track: Row) -> dict[str, Any]:
    """A track as a Child of OpenSubsonic; what is not known is left out."""
    seconds, date = track["duration_seconds"], track["release_date"] or ""
    about = {
        "id": track["track_id"],
        "isDir": False,
        "type": "music",
        "mediaType": "song",
        "title": track["title"],
        "artist": ", ".join(track["artist_names"]) or None,
        "artistId": next(iter(track["artist_ids"]), None),
        "album": track["album"],
        "albumId": track["album_id"],
        "year": int(date[:4]) if date[:4].isdecimal() else None,
        "genre": next(iter(track["genres"]), None),
        "genres": [{"name": genre} for genre in track["genres"]],
        "duration": round(seconds) if seconds else None,
        "isrc": [track["isrc"]] if track["isrc"] else [],
        "explicitStatus": {True: "explicit", False: "clean"}.get(track["explicit"]),
    }
    return {name: value for name, value in about.items() if value is not None}
