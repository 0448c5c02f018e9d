"""All doors by which data from elsewhere enters songray, and what comes of mutated inputs at each of them.

Files, manifests and answers of sources go through the real stages on Ray, uploads and requests through the
real service on Ray Serve. Beside the mutated inputs are good ones, whose rows or answers are counted. A
process that dies, an exception that leaves a stage, and a deadline that passes are counted too; none raises.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet
import ray
from aiohttp import web
from conftest import tone
from fakes import served
from fakes.deezer import FakeDeezer
from fakes.itunes import FakeItunes
from fakes.spotify import CLIENT_ID, CLIENT_SECRET, FakeSpotify, artist_id, track_id
from mutations import OTHER_FORMATS, json_text, mutate, mutate_json, mutate_query
from serving import clip

from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl, read_batch
from songray.catalogue.sources.base import Contents, Page, Source
from songray.catalogue.sources.deezer import DeezerApi, DeezerSource
from songray.catalogue.sources.folder import SUFFIXES, FolderSource
from songray.catalogue.sources.itunes import ItunesApi, ItunesSource
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.catalogue.sources.spotify.source import SpotifySource
from songray.cluster import configure_ray_data
from songray.library import Library

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

KEY = "open-sesame"  # of the service
READ_SECONDS = 20.0  # deadline of reading one file in a crawl, by a worker that may have to start first
TRANSFORM_SECONDS = 20.0  # of decoding one file, after which its process is ended
UPLOAD_SECONDS = 50.0  # of an upload: its decoder is ended after 20 s, and may wait for others before
REQUEST_SECONDS = 40.0  # of any other request: a body that does not arrive ends it after 30 s
STAGE_SECONDS = 600.0
GOOD_SHARE = 10  # one good input beside so many mutated ones
ROWS = 12  # of a manifest


@dataclass
class Door:
    """What became of the inputs of one door."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by class
    crashes: int = 0  # processes that died, and exceptions that left a stage
    server_errors: int = 0
    hangs: int = 0
    beside: int = 0  # good rows or requests
    lost: int = 0  # of them
    longest: float = 0.0  # seconds of one input
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)  # what crashed, failed, hung or was lost

    @property
    def is_sound(self) -> bool:
        return not (self.crashes or self.server_errors or self.hangs or self.lost)

    def apart(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """What a function returns in a process of its own; None where it dies, raises or hangs."""
        started = time.monotonic()
        reference = ray.remote(num_cpus=0, max_retries=0)(_in_worker).remote(function, *arguments)
        try:
            return ray.get(reference, timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            self.hangs += 1
            self.failures.append(f"hang: {function.__name__} {arguments[-1]!r:.300}")
        except ray.exceptions.RayError as error:
            self.crashes += 1
            self.failures.append(f"crash: {function.__name__} {arguments[-1]!r:.300}: {error!s:.3000}")
        finally:
            if seconds == READ_SECONDS:  # of one input
                self.longest = max(self.longest, time.monotonic() - started)
        return None

    def expect(self, expected: set[Any], actual: set[Any]) -> None:
        """Count good rows, and those that are missing."""
        self.beside += len(expected)
        self.lost += len(expected - actual)
        self.failures += [f"lost: {row}" for row in sorted(map(str, expected - actual))[:20]]


def _in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    configure_ray_data()
    return function(*arguments)


@contextmanager
def timed(door: Door) -> Iterator[Door]:
    started = time.monotonic()
    yield door
    door.seconds = time.monotonic() - started


def read_page(source: Source, page: Page) -> Counter[str]:
    """Worker: the problems of a page by kind, as a crawl reads it."""
    pieces = pa.concat_tables(read_batch(pa.Table.from_pylist([asdict(page)]), source)).to_pylist()
    return Counter(problem["kind"] for piece in pieces for problem in piece["problems"])


def music_folder(random: Random, sounds: list[bytes], count: int, library: Library, folder: Path) -> Door:
    """Audio files, from the folder to their spectrograms."""
    folder.mkdir()
    good = {
        str(tone(folder / f"good {n}.wav", 2, 200 + 13 * n))
        for n in range(count // GOOD_SHARE)
    }  # fmt: skip
    for number in range(count):
        name = folder / f"{number:04d}{random.choice(SUFFIXES)}"
        name.write_bytes(mutate(random, random.choice(sounds), [*sounds, *OTHER_FORMATS.values()]))
    source = FolderSource(folder)
    with timed(Door("files in a folder", count)) as door:
        for page in source.pages():
            door.apart(read_page, source, page, seconds=READ_SECONDS)
        stages = {
            crawl: (library, source, CrawlConfig(max_failed_share=1)),
            download: (library, DownloadConfig(max_failed_share=1)),
            transform: (library, TransformConfig(seconds_per_track=TRANSFORM_SECONDS, max_failed_share=1)),
        }
        summaries = [door.apart(stage, *given, seconds=STAGE_SECONDS) for stage, given in stages.items()]
        _count_tracks(door, library, good, summaries)
    return door


def _count_tracks(door: Door, library: Library, good: set[str], summaries: list[Any]) -> None:
    """What the tables have of each file: every track has a spectrogram or an error, unless it is retried."""
    tracks = library.table("tracks").read(["track_id", "location"]).to_pylist()
    location = {track["track_id"]: track["location"] for track in tracks}
    previews = library.table("previews").read(["track_id", "error"]).to_pylist()
    rows = library.table("spectrograms", "default").read(["track_id", "error"]).to_pylist()
    outcome = {row["track_id"]: row["error"] for row in previews if row["error"]}
    outcome |= {row["track_id"]: row["error"] for row in rows}
    decoded = {location[track] for track, error in outcome.items() if not error}
    door.expect(good, decoded)
    door.accepted = len(decoded - good)
    door.refused.update(error for error in outcome.values() if error)
    if all(summaries):
        crawled, downloaded, transformed = summaries
        # A repeated sound is the same track, which keeps the better of two descriptions.
        repeated = crawled.counts["duplicate"] + crawled.counts["completed"]
        door.refused["duplicate"] = repeated
        door.refused.update(downloaded.retryable + transformed.retryable)
        retried = (downloaded.retryable + transformed.retryable).total()
        missing = door.inputs + len(good) - repeated - len(outcome) - retried
        door.lost += abs(missing)  # each file is counted exactly once
        door.failures += [f"{missing} files are neither refused nor accepted: {crawled}"] * bool(missing)


def _track_rows(number: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{number}-{row}", "title": f"Song {row}", "artist": "A;Björk", "album": "É",
         "date": "1987-06", "duration": 12.5, "genre": "Jazz", "isrc": "", "explicit": "no", "url": f"http://x.test/{row}.mp3"}
        for row in range(ROWS)
    ]  # fmt: skip


def _playlist_rows(number: int) -> list[dict[str, Any]]:
    return [{"playlist": f"L{number}", "position": row, "track": f"{number}-{row}"} for row in range(ROWS)]


def _million(number: int) -> bytes:
    tracks = [
        {"pos": row, "track_uri": f"spotify:track:N{number}x{row}", "track_name": "S", "duration_ms": 9000,
         "artist_uri": "spotify:artist:A1", "artist_name": "A", "album_uri": "spotify:album:B1",
         "album_name": "B"}
        for row in range(ROWS)
    ]  # fmt: skip
    playlists = [{"name": f"L{number}", "pid": number, "tracks": tracks}]
    return json.dumps({"info": {}, "playlists": playlists}, indent=1).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), content, row_group_size=4)
    return content.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet,
}  # fmt: skip


def manifests(random: Random, count: int, library: Library, folder: Path) -> Door:
    """Tracks in CSV, JSON lines and Parquet. Half of the files in lines have one mutated line, and all of
    their other rows are expected."""
    return _manifests("manifests", random, count, library, folder, _track_rows, WRITERS)


def playlists(random: Random, count: int, library: Library, folder: Path) -> Door:
    """Playlists in the same formats, and in that of the Million Playlist Dataset."""
    writers = WRITERS | {".json": lambda rows: _million(int(rows[0]["playlist"][1:]))}
    return _manifests("playlists in manifests", random, count, library, folder, _playlist_rows, writers)


def _manifests(
    name: str, random: Random, count: int, library: Library, folder: Path, rows_of: Any, writers: Any
) -> Door:
    folder.mkdir()
    expected: set[tuple[int, int]] = set()  # file, row
    for number in range(count + count // GOOD_SHARE):
        suffix = random.choice(list(writers))
        content = writers[suffix](rows_of(number))
        whole = {(number, row) for row in range(ROWS)}
        if number >= count:
            expected |= whole
        elif suffix in (".csv", ".jsonl") and number % 2:
            lines, has_head = content.splitlines(keepends=True), suffix == ".csv"
            row = random.randrange(ROWS)
            line = mutate(random, lines[row + has_head], list(OTHER_FORMATS.values()))
            lines[row + has_head] = line if line.endswith(b"\n") else line + b"\n"
            content = b"".join(lines)
            expected |= whole - {(number, row)}
        else:
            content = mutate(random, content, list(OTHER_FORMATS.values()))
        (folder / f"{number:04d}{suffix}").write_bytes(content)
    source = ManifestSource(str(folder))
    with timed(Door(name, count)) as door:
        for page in list(source.pages())[:count]:
            problems = door.apart(read_page, source, page, seconds=READ_SECONDS)
            _count_problems(door, problems)
        door.apart(crawl, library, source, CrawlConfig(max_failed_share=1), seconds=STAGE_SECONDS)
        if rows_of is _track_rows:
            stored = library.table("tracks").read(["track_id"])["track_id"].to_pylist()
            ids = {f"manifest:{number}-{row}": (number, row) for number, row in expected}
            door.expect(set(ids), set(stored))
        else:
            stored = library.table("playlists").read(["playlist", "position"]).to_pylist()
            actual = {(entry["playlist"], entry["position"]) for entry in stored}
            door.expect({(f"L{number}", row) for number, row in expected}, actual)
    return door


def _count_problems(door: Door, problems: Counter[str] | None) -> None:
    """An input with a problem is refused, in whole or in part, by the class of its most frequent problem."""
    if problems is None:
        return
    problems -= Counter(no_preview_url=10**6)  # of tracks that are stored
    if problems:
        door.refused[problems.most_common(1)[0][0]] += 1
    else:
        door.accepted += 1


@dataclass
class Mutator:
    """Mutates the answers of a fake to some requests, always the same to the same request.

    `lists` names where an answer has its items: half of the answers are mutated in one item alone, and the
    ids of the others are expected.
    """

    seed: int
    is_mutated: Callable[[web.Request], bool]
    items: str = ""
    id_name: str = "id"
    expected: set[str] = field(default_factory=set)
    mutated: set[str] = field(default_factory=set)  # requests

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        if not (self.is_mutated(request) and isinstance(response.body, bytes)):
            return response
        self.mutated.add(request.path_qs)
        random = Random(f"{self.seed} {request.path_qs.partition('&limit')[0]}")
        body = self._body(random, json.loads(response.body), request)
        return web.Response(body=body, content_type=response.content_type)

    def _body(self, random: Random, content: Any, request: web.Request) -> bytes:
        if (items := content.get(self.items)) and random.random() < 0.5:
            at = random.randrange(len(items))
            others = [item for number, item in enumerate(items) if number != at]
            self.expected |= {str(item[self.id_name]) for item in others if self.id_name in item}
            items[at] = mutate_json(random, items[at])
            return json.dumps(content).encode()
        if random.random() < 0.6:
            return json_text(random, mutate_json(random, content))
        return mutate(random, json.dumps(content).encode(), list(OTHER_FORMATS.values()))


def _is_good(number: int) -> bool:
    return number % GOOD_SHARE == 1


def deezer(random: Random, count: int, library: Library) -> Door:
    """The top tracks of artists, and playlists, which are two answers each; those of every tenth are not
    mutated."""
    artists, playlists = range(1, count // 2 + 3), range(1, count // 4 + 2)
    fake = FakeDeezer(artists=max(100, *artists))
    mutator = Mutator(random.random(), lambda request: not _is_good(int(request.path.split("/")[2])), "data")
    with _mutating(fake.application(), mutator) as url:
        api = DeezerApi(url, deezer_requests_per_second=10_000, deezer_pause_seconds=0.1)
        source = DeezerSource(artists=tuple(artists), playlists=tuple(playlists), api=api)
        songs = [song for n in filter(_is_good, artists) for song in fake.songs(n)[:5]]
        songs += [song for n in filter(_is_good, playlists) for song in fake.playlist_songs(n)]
        return _source("answers of Deezer", source, library, mutator, set(map(str, songs)), "deezer:")


def itunes(random: Random, count: int, library: Library) -> Door:
    """Look-ups of artists; those of every tenth are not mutated."""
    artists = range(1, count + count // (GOOD_SHARE - 1) + 2)
    mutator = Mutator(
        random.random(), lambda request: not _is_good(int(request.query["id"])), "results", "trackId"
    )
    with _mutating(FakeItunes(artists=max(artists)).application(), mutator) as url:
        api = ItunesApi(url, itunes_requests_per_minute=1_000_000, itunes_pause_seconds=0.1)
        source = ItunesSource(ids=tuple(artists), api=api)
        albums = [100 * n + album for n in filter(_is_good, artists) for album in (1, 2, 3)]
        good = {str(1000 * album + song) for album in albums for song in range(1, 6)}
        return _source("answers of iTunes", source, library, mutator, good, "itunes:")


@dataclass(frozen=True)
class SpotifyWithCredentials(SpotifySource):
    """The workers of a Ray that other tests have started lack the fake's credentials."""

    def pages(self) -> Iterator[Page]:
        os.environ.update(SPOTIPY_CLIENT_ID=CLIENT_ID, SPOTIPY_CLIENT_SECRET=CLIENT_SECRET)
        return super().pages()

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        os.environ.update(SPOTIPY_CLIENT_ID=CLIENT_ID, SPOTIPY_CLIENT_SECRET=CLIENT_SECRET)
        return super().read(pages)


def spotify(random: Random, count: int, library: Library) -> Door:
    """Artists, their albums and the tracks of those; those of every tenth are not mutated."""
    artists = range(1, 1 + max(2, count // 3))  # three to four answers an artist
    fake = FakeSpotify(artists=max(artists) + 1)

    def is_mutated(request: web.Request) -> bool:
        owner = re.match("/v1/artists/artist([0-9]{16})|/v1/albums/album([0-9]{13})", request.path)
        return owner is not None and not _is_good(int(owner[1] or owner[2]))

    mutator = Mutator(random.random(), is_mutated)
    with _mutating(fake.application(), mutator) as url:
        urls = {"spotify_url": f"{url}/v1/", "token_url": f"{url}/api/token"}
        ids = tuple(artist_id(number) for number in artists)
        source = SpotifyWithCredentials(artists=ids, requests_per_second=3000.0, timeout_seconds=10.0, **urls)
        songs = itertools.product(filter(_is_good, artists), range(2), range(3))
        good = {track_id(*song) for song in songs}
        return _source("answers of Spotify", source, library, mutator, good, "spotify:")


@contextmanager
def _mutating(application: web.Application, mutator: Mutator) -> Iterator[str]:
    application.middlewares.insert(0, mutator.middleware)
    with served(application) as url:
        yield url


def _source(
    name: str,
    source: Any,
    library: Library,
    mutator: Mutator,
    good: set[str],
    prefix: str,
) -> Door:
    with timed(Door(name)) as door:
        config = CrawlConfig(max_failed_share=1, max_depth=0)
        summary = door.apart(crawl, library, source, config, seconds=STAGE_SECONDS)
        stored = set(library.table("tracks").read(["track_id"])["track_id"].to_pylist())
        door.expect({prefix + reference for reference in good | mutator.expected}, stored)
        door.inputs = len(mutator.mutated)
        pages = library.table("pages").read(["page_problems"])["page_problems"].to_pylist()
        for problems in pages:
            _count_problems(door, Counter(problem["kind"] for problem in problems or []))
        if summary:
            door.refused["to be retried"] = summary.counts["retryable"]
            door.accepted -= len(pages) + summary.counts["retryable"] - door.inputs  # pages as they were
    return door


@dataclass
class Answer:
    status: int  # 0: the connection was closed without one
    body: bytes
    seconds: float


def send(url: str, request: bytes, seconds: float, is_framed: bool = True) -> Answer | None:
    """The answer to a request as it stands; None where there is none within the deadline. Where it may be
    incomplete, no more is sent after it."""
    address, started = urlsplit(url), time.monotonic()
    received = b""
    try:
        with socket.create_connection((address.hostname, address.port), timeout=seconds) as connection:
            connection.sendall(request)
            if not is_framed:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                received += chunk
                connection.settimeout(max(0.01, started + seconds - time.monotonic()))
    except TimeoutError:
        return None
    except OSError:  # the server has answered and closed before everything was sent
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else 0
    return Answer(status, body, time.monotonic() - started)


def http_request(method: str, target: str, body: bytes = b"", content_type: str = "") -> bytes:
    fields = {"Host": "127.0.0.1", "Authorization": f"Bearer {KEY}", "Connection": "close"}
    if body or content_type:
        fields |= {"Content-Length": str(len(body)), "Content-Type": content_type}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def form(content: bytes, name: str = "audio", filename: str = "a.wav", boundary: str = "songray") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{boundary}--\r\n".encode()


MULTIPART = "multipart/form-data; boundary=songray"


class Service:
    """Sends requests to the service and counts its answers; every tenth is followed by a good one."""

    def __init__(self, url: str, door: Door, seconds: float, good: bytes) -> None:
        self.url, self.door, self.seconds, self.good = url, door, seconds, good
        self.expected = send(url, good, seconds)
        assert self.expected and self.expected.status == 200, self.expected

    def send(self, request: bytes, is_framed: bool = True) -> None:
        door, answer = self.door, send(self.url, request, self.seconds, is_framed)
        door.inputs += 1
        if answer is None:
            door.hangs += 1
            door.failures.append(f"hang: {request[:500]!r}")
        else:
            door.longest = max(door.longest, answer.seconds)
            self._count(request, answer, is_framed)
        if door.inputs % GOOD_SHARE == 0:
            beside = send(self.url, self.good, self.seconds)
            is_lost = beside is None or (beside.status, beside.body) != (200, self.expected.body)
            door.beside += 1
            door.lost += is_lost
            door.failures += [f"lost: the good request after {request[:500]!r}: {beside}"] * is_lost

    def _count(self, request: bytes, answer: Answer, is_framed: bool) -> None:
        door = self.door
        if answer.status >= 500:
            door.server_errors += 1
            door.failures.append(f"{answer.status}: {request[:1000]!r}: {answer.body[:500]!r}")
        elif answer.status == 0 and is_framed:
            door.crashes += 1
            door.failures.append(f"closed without an answer: {request[:1000]!r}")
        elif kind := _refusal(answer):
            door.refused[kind] += 1
        else:
            door.accepted += 1


def _refusal(answer: Answer) -> str:
    """The class of a refusal; "" for an answer."""
    if answer.status == 0:
        return "closed"
    if answer.status == 200 and b'status="failed"' in answer.body:
        return "200, failed"
    if answer.status in (415, 422) and answer.body:  # HEAD has no body
        kind = str(json.loads(answer.body)["detail"]).partition(":")[0]
        return f"{answer.status} {kind}" if kind.replace("_", "").isalpha() else str(answer.status)
    return "" if answer.status == 200 else str(answer.status)


def uploads(random: Random, sounds: list[bytes], count: int, url: str, folder: Path) -> Door:
    """Audio that is uploaded to the service."""
    with timed(Door("uploads of audio")) as door:
        upload = partial(http_request, "POST", "/v1/similar?k=3", content_type=MULTIPART)
        service = Service(url, door, UPLOAD_SECONDS, upload(body=form(clip(folder, 7))))
        for _ in range(count):
            content = mutate(random, random.choice(sounds), [*sounds, *OTHER_FORMATS.values()])
            service.send(upload(body=form(content, filename=f"x{random.choice(SUFFIXES)}")))
    return door


QUERIES: tuple[tuple[str, list[tuple[str, str]]], ...] = (
    ("/v1/tracks", [("q", "bjork 12"), ("limit", "5")]),
    ("/v1/tracks/t:12", []),
    ("/v1/tracks/t:12/similar", [
        ("k", "5"), ("diversity", "0.3"), ("per_artist", "1"), ("genres", "Folk"), ("not_tracks", "t:1"),
        ("year_from", "1980"), ("seconds_to", "300"), ("explicit", "false"),
    ]),
    ("/v1/path", [("from", "t:0"), ("to", "t:23"), ("steps", "5"), ("genres", "Folk")]),
    ("/v1/map", [("bbox", "-1,-1,1,1"), ("limit", "9")]),
    ("/v1/points", [("bbox", "-1,-1,1,1"), ("limit", "9"), ("color", "year"), ("similar_to", "t:1")]),
    ("/v1/points/tracks", [("version", "000001"), ("point", "0.3"), ("point", "0.4")]),
    ("/v1/points/positions", [("track", "t:1"), ("track", "t:2")]),
    ("/audio/t:3", [("expires", "1"), ("signature", "x")]), ("/v1/tracks/t:3/audio", []),
    ("/v1/stats", []), ("/v1/runs", []), ("/readyz", []), ("/metrics", []), ("/openapi.json", []),
)  # fmt: skip
CREDENTIALS = (
    [("apiKey", KEY)],
    [("u", "anna"), ("p", f"enc:{KEY.encode().hex()}")],
    [("u", "anna"), ("t", hashlib.md5(f"{KEY}salt".encode()).hexdigest()), ("s", "salt")],
)
SUBSONIC = tuple(
    (f"/rest/{name}", [*parameters, *credentials, ("f", "xml"), ("v", "1.16.1"), ("c", "x")])
    for credentials in CREDENTIALS
    for name, parameters in (
        ("getSonicSimilarTracks.view", [("id", "t:12"), ("count", "5")]),
        ("findSonicPath", [("startSongId", "t:0"), ("endSongId", "t:23"), ("count", "5")]),
        ("ping", []),
        ("getOpenSubsonicExtensions", []),
        ("tokenInfo", []),
    )
)
FILTERS = {"genres": ["Folk", "Electro"], "not_tracks": ["t:1"], "year_from": 1980, "explicit": False}
BODIES: tuple[tuple[str, Any], ...] = (
    ("/v1/recommend", {"like": [{"id": "t:3"}, {"id": "t:5", "weight": 2}], "unlike": [{"id": "t:20"}],
                       "k": 6, "diversity": 0.2, "per_artist": 2, "filters": FILTERS}),
    *((f"/v1/playlist?format={name}", {"seeds": [{"id": "t:3"}, {"id": "t:4"}], "k": 5, "filters": FILTERS})
      for name in ("json", "m3u8", "csv", "xspf")),
)  # fmt: skip
GOOD_REQUEST = http_request("GET", "/v1/tracks/t:12/similar?k=5")


def query_strings(random: Random, count: int, url: str) -> Door:
    """Paths and query strings of /v1; one in ten requests is mutated as a whole, in its raw bytes."""
    return _requests("query strings of /v1", random, count, url, _query)


def opensubsonic(random: Random, count: int, url: str) -> Door:
    """Parameters of OpenSubsonic, in query strings and in forms."""
    return _requests("parameters of OpenSubsonic", random, count, url, _parameters)


def bodies(random: Random, count: int, url: str) -> Door:
    """Bodies in JSON, and the frame of the form that an upload has."""
    return _requests("bodies", random, count, url, _body)


def _requests(name: str, random: Random, count: int, url: str, request_of: Callable[[Random], bytes]) -> Door:
    with timed(Door(name)) as door:
        service = Service(url, door, REQUEST_SECONDS, GOOD_REQUEST)
        for _ in range(count):
            request = request_of(random)
            is_raw = random.random() < 0.1
            others = list(OTHER_FORMATS.values())
            service.send(mutate(random, request, others) if is_raw else request, is_framed=not is_raw)
    return door


def _query(random: Random) -> bytes:
    path, parameters = random.choice(QUERIES)
    if random.random() < 0.2:
        name = mutate(random, b"t:12", [b"/similar", b"\xff", b"../"])[:3000]
        path = "/v1/tracks/" + "".join(f"%{byte:02X}" for byte in name) + random.choice(("", "/similar"))
    query = mutate_query(random, parameters)
    return http_request(random.choice(("GET", "GET", "GET", "HEAD")), f"{path}?{query}")


def _parameters(random: Random) -> bytes:
    path, parameters = random.choice(SUBSONIC)
    query = mutate_query(random, parameters)
    if random.random() < 0.5:
        return http_request("GET", f"{path}?{query}")
    charset = random.choice(("", "", "; charset=utf-16", "; charset=unicode_escape", "; charset=\xff"))
    return http_request("POST", path, query.encode(), f"application/x-www-form-urlencoded{charset}")


def _body(random: Random) -> bytes:
    if random.random() < 0.2:
        content = form(b"no audio", filename="a\\\ud800".encode(errors="replace").decode())
        kind = random.choice((MULTIPART, f"{MULTIPART}; charset=unicode_escape", "multipart/form-data", "x"))
        return http_request("POST", "/v1/similar", mutate(random, content, [content]), kind)
    path, content = random.choice(BODIES)
    if random.random() < 0.7:
        body = json_text(random, mutate_json(random, content))
    else:
        body = mutate(random, json.dumps(content).encode(), list(OTHER_FORMATS.values()))
    kind = random.choice(("application/json",) * 8 + ("text/plain", "application/json; charset=utf-16"))
    return http_request("POST", path, body, kind)


def table_row(door: Door) -> list[Any]:
    refused = ", ".join(f"{kind} {number}" for kind, number in door.refused.most_common() if number)
    return [door.name, door.inputs, door.accepted, refused, door.crashes, door.server_errors, door.hangs,
            f"{door.lost} of {door.beside}", round(door.longest, 1), round(door.seconds)]  # fmt: skip


HEADS = ["door", "inputs", "accepted", "refused by class", "crashes", "5xx", "hangs", "good ones lost",
         "longest, s", "seconds"]  # fmt: skip
