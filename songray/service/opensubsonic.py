"""OpenSubsonic's extension sonicSimilarity, for music players that support it: https://opensubsonic.netlify.app

The protocol takes parameters from the query string or a form, and keys among them; it reports failures with
HTTP 200. Responses are XML, or JSON where the parameter f is "json". The older format "jsonp", which the
OpenAPI document of OpenSubsonic does not name, is refused: by it any web page could read responses.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from xml.etree import ElementTree

import orjson
from fastapi import APIRouter, Request, Response

from songray.errors import NotEnoughTracks, UnknownTrack
from songray.library import Row
from songray.search import paths, ranking
from songray.search.filters import EVERYTHING
from songray.search.ranking import RankingOptions, Searcher
from songray.service.api_keys import is_key
from songray.service.dependencies import CurrentService, Service

API_VERSION = "1.16.1"
EXTENSIONS = ("sonicSimilarity", "formPost", "apiKeyAuthentication")
XML_NAMESPACE = "http://subsonic.org/restapi"
NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML forbids
MAX_COUNT = 500  # tracks of one response
GENERIC, MISSING, WRONG_PASSWORD, CONFLICT, WRONG_KEY, NOT_FOUND = 0, 10, 40, 43, 44, 70

Parameters = Mapping[str, str]
Method = Callable[[Searcher, Parameters], Awaitable[dict[str, Any]]]

router = APIRouter(prefix="/rest", include_in_schema=False)


class Failure(Exception):
    """An error with one of the protocol's codes."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@router.api_route("/{name}", methods=["GET", "POST"])
async def method(name: str, request: Request, service: CurrentService) -> Response:
    parameters = {**request.query_params}
    if request.method == "POST":
        async with request.form(max_files=0) as form:
            parameters |= {key: value for key, value in form.items() if isinstance(value, str)}
    parameters = {key: value.encode(errors="replace").decode() for key, value in parameters.items()}
    try:
        if parameters.get("f", "xml") not in FORMATS:
            raise Failure(GENERIC, f"f is {parameters['f'][:20]!r}: must be {' or '.join(FORMATS)}")
        content = await call(name.removesuffix(".view"), parameters, service, request.app.state.keys)
        return _response(parameters, "ok", content)
    except Failure as failure:
        return _response(parameters, "failed", {"error": {"code": failure.code, "message": str(failure)}})


def _response(parameters: Parameters, status: str, content: dict[str, Any]) -> Response:
    header = {"status": status, "version": API_VERSION, "type": "songray", "serverVersion": _server_version()}
    body = {**header, "openSubsonic": True, **content}
    media_type, write = FORMATS.get(parameters.get("f", "xml"), FORMATS["xml"])
    return Response(write(body), media_type=media_type)


def write_json(body: dict[str, Any]) -> bytes:
    return orjson.dumps({"subsonic-response": body})


def write_xml(body: dict[str, Any]) -> bytes:
    """The same content as XML: a value is an attribute, an object an element, and a list one element for each
    of its items."""
    root = ElementTree.Element("subsonic-response", xmlns=XML_NAMESPACE)
    _fill(root, body)
    text: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return text


def _fill(element: ElementTree.Element, content: Any) -> None:
    if not isinstance(content, dict):
        element.text = _xml_text(content)
        return
    for name, value in content.items():
        if isinstance(value, dict | list):
            for item in value if isinstance(value, list) else [value]:
                _fill(ElementTree.SubElement(element, name), item)
        else:
            element.set(name, _xml_text(value))


def _xml_text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else NOT_IN_XML.sub("", str(value))


FORMATS: dict[str, tuple[str, Callable[[dict[str, Any]], bytes]]] = {  # name: media type, writer
    "xml": ("text/xml", write_xml),
    "json": ("application/json", write_json),
}


def _server_version() -> str:
    try:
        return version("songray")
    except PackageNotFoundError:
        return "unknown"


async def call(name: str, parameters: Parameters, service: Service, keys: frozenset[str]) -> dict[str, Any]:
    """The content of a response. Raises Failure."""
    if name == "getOpenSubsonicExtensions":  # the one method that needs no key
        return {"openSubsonicExtensions": [{"name": extension, "versions": [1]} for extension in EXTENSIONS]}
    check_key(parameters, keys)
    if name not in METHODS:
        raise Failure(GENERIC, f"songray has no method {name}: it has {', '.join(METHODS)}")
    try:
        return await METHODS[name](service.snapshot(), parameters)
    except UnknownTrack as error:
        raise Failure(NOT_FOUND, f"track not found: {error}") from error


def check_key(parameters: Parameters, keys: frozenset[str]) -> None:
    """Raise Failure unless the parameters contain one of the keys: as apiKey, as the password p, plain or in
    hexadecimal, or as the token t = md5(password + salt s)."""
    if not keys:
        return
    if api_key := parameters.get("apiKey"):
        if parameters.keys() & {"u", "p", "t", "s"}:
            raise Failure(CONFLICT, "give either apiKey, or u with p or with t and s")
        if not is_key(api_key, keys):
            raise Failure(WRONG_KEY, "apiKey is not a key of this service")
    elif token := parameters.get("t"):
        salt = parameters.get("s", "")
        if not is_key(token, {hashlib.md5((key + salt).encode()).hexdigest() for key in keys}):
            raise Failure(WRONG_PASSWORD, "t is not the token of a key of this service")
    elif password := parameters.get("p"):
        if not is_key(_decoded(password), keys):
            raise Failure(WRONG_PASSWORD, "p is not a key of this service")
    else:
        raise Failure(MISSING, "a key is needed: as apiKey, as p, or as t with s")


def _decoded(password: str) -> str:
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
    """The similar tracks in descending similarity, as the extension requires."""
    options = RankingOptions(k=_count(parameters, default=10, minimum=0))
    _, recommendations = await ranking.similar(searcher, _required(parameters, "id"), options)
    return _matches((item.track, item.similarity) for item in recommendations)


async def _path(searcher: Searcher, parameters: Parameters) -> dict[str, Any]:
    """The path from its start to its end, and the similarity of each track to the start, as the extension
    requires."""
    start, end = _required(parameters, "startSongId"), _required(parameters, "endSongId")
    if start == end:
        raise Failure(GENERIC, "startSongId and endSongId are the same")
    count = _count(parameters, default=25, minimum=1)
    rows = (await _longest_path(searcher, start, end, max(2, count)))[:count]
    similarities = await paths.start_similarities(searcher, [row["track_id"] for row in rows])
    return _matches(zip(rows, similarities, strict=True))


def _matches(tracks: Iterable[tuple[Row, float]]) -> dict[str, Any]:
    return {"sonicMatch": [{"entry": child(row), "similarity": similarity} for row, similarity in tracks]}


async def _longest_path(searcher: Searcher, start: str, end: str, steps: int) -> list[Row]:
    """A path of so many steps, or of half as many, and so on, where there are not enough tracks."""
    try:
        return await paths.path(searcher, start, end, steps, EVERYTHING)
    except NotEnoughTracks:
        return await _longest_path(searcher, start, end, max(2, steps // 2))


METHODS: dict[str, Method] = {
    "ping": _ping,
    "tokenInfo": _token_info,
    "getSonicSimilarTracks": _similar,
    "findSonicPath": _path,
}


def _required(parameters: Parameters, name: str) -> str:
    if not (value := parameters.get(name)):
        raise Failure(MISSING, f"the parameter {name} is missing")
    return value


def _count(parameters: Parameters, default: int, minimum: int) -> int:
    text = parameters.get("count", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Failure(GENERIC, f"count is {text[:20]!r}: must be a number")
    if int(text) < minimum:
        raise Failure(GENERIC, f"count is {text}: must be at least {minimum}")
    return min(int(text), MAX_COUNT)


def child(track: Row) -> dict[str, Any]:
    """A track as OpenSubsonic's Child: its required fields, and those that have a value."""
    seconds, date = track["duration_seconds"] or 0.0, track["release_date"] or ""
    fields = {
        "id": track["track_id"],
        "isDir": False,
        "type": "music",
        "mediaType": "song",
        "title": track["title"] or "",
        "artist": ", ".join(track["artist_names"]) or None,
        "artistId": next(iter(track["artist_ids"]), None),
        "album": track["album"],
        "albumId": track["album_id"],
        "year": int(date[:4]) if date[:4].isdecimal() else None,
        "genre": next(iter(track["genres"]), None),
        "genres": [{"name": genre} for genre in track["genres"]],
        "duration": round(seconds) if 0 < seconds < math.inf else None,
        "bpm": round(track["tempo_bpm"]) if track["tempo_bpm"] else None,
        "isrc": [track["isrc"]] if track["isrc"] else [],
        "explicitStatus": {True: "explicit", False: "clean"}.get(track["explicit"], ""),
    }
    return {name: value for name, value in fields.items() if value is not None}
