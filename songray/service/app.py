"""Answers over HTTP from one index: one process holds it all."""

# Serve ships the application pickled as it stands at the decorator of its class: what it uses is defined
# above, and annotations are objects, not strings.
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.schema import LoggingConfig

from songray import recommender, runs
from songray.index import Index, Manifest, newest_manifest
from songray.library import Library

api = FastAPI(title="songray", summary="What sounds like this?", version="1")


@dataclass(frozen=True)
class ServeConfig:
    run: str = ""
    """Run whose newest index answers; may be left out where there is only one."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""


class Track(BaseModel):
    """What the catalogue says of a track."""

    track_id: str = Field(examples=["deezer:3135556"])
    source: str
    title: str
    artist_ids: list[str]
    artist_names: list[str]
    album_id: str | None
    album: str | None
    release_date: str | None
    release_date_precision: str | None
    duration_seconds: float | None
    genres: list[str]
    isrc: str | None
    explicit: bool | None
    recording: str | None
    preview: str | None = Field(description="URL of the audio, where it has a public one")


class SimilarTrack(BaseModel):
    track: Track
    similarity: float = Field(ge=0, le=1, description="(1 + cosine) / 2")


class Similar(BaseModel):
    track: Track
    similar: list[SimilarTrack]


class Tracks(BaseModel):
    tracks: list[Track]


class Health(BaseModel):
    status: str
    run: str
    version: str
    tracks: int


class Problem(BaseModel):
    detail: str


UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such track"}}


@api.exception_handler(recommender.UnknownTrack)
async def unknown_track(request: Request, error: recommender.UnknownTrack) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=404)


def shown(row: dict[str, Any]) -> Track:
    """A row as it is answered: the place of a file in somebody's folder is nobody else's business."""
    location = row["location"] or ""
    return Track(**row, preview=location if location.startswith(("http://", "https://")) else None)


QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@serve.deployment(max_ongoing_requests=100, logging_config=QUIET)
@serve.ingress(api)
class Recommender:
    """The ingress: holds the index and answers itself."""

    def __init__(self, library: Library, manifest: Manifest) -> None:
        self.index = Index.open(library, manifest)

    @api.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        return HTMLResponse(files("songray.service").joinpath("page.html").read_text("utf-8"))

    @api.get("/healthz")
    async def health(self) -> Health:
        """Whether it answers, and from what."""
        manifest = self.index.manifest
        return Health(status="ok", run=manifest.run, version=manifest.version, tracks=manifest.tracks)

    @api.get("/v1/tracks")
    async def tracks(
        self,
        q: Annotated[str, Query(max_length=200, description="words, or their beginnings")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Tracks:
        """Tracks by title and artist, best match first; without words, the first ones."""
        found = await self.index.rows(await self.index.search(q, limit))
        return Tracks(tracks=[shown(row) for row in found])

    @api.get("/v1/tracks/{track_id:path}/similar", responses=UNKNOWN)
    async def similar(self, track_id: str, k: Annotated[int, Query(ge=1, le=500)] = 10) -> Similar:
        """What sounds most like a track, the most similar first, without the track itself."""
        found = await recommender.similar(self.index, track_id, k)
        seed = await self.track(track_id)
        answers = [SimilarTrack(track=shown(one.track), similarity=one.similarity) for one in found]
        return Similar(track=seed, similar=answers)

    @api.get("/v1/tracks/{track_id:path}", responses=UNKNOWN)
    async def track(self, track_id: str) -> Track:
        """What the catalogue says of a track."""
        place, _ = await recommender.find(self.index, track_id)
        (row,) = await self.index.rows([place])
        return shown(row)


@contextmanager
def served(library: Library, config: ServeConfig) -> Iterator[str]:
    """The service, up within the context; gives its address. Ray must be connected."""
    run = runs.choose(library, config.run).name
    manifest = newest_manifest(library, run)
    if manifest is None:
        raise ValueError(f"indexes/{run} is empty: run jobs/index.py first")
    check_port(config.host, config.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    where = {"host": config.host, "port": config.port, "location": "HeadOnly"}
    serve.start(http_options=where, logging_config=QUIET)
    try:
        application = Recommender.bind(library, manifest)  # type: ignore[attr-defined]
        serve.run(application, name="songray")
        yield f"http://{config.host}:{config.port}"
    finally:
        serve.shutdown()


def check_port(host: str, port: int) -> None:
    """Raise ValueError where something else listens already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port {port} on {host} cannot be had ({error.strerror}): choose another"
            ) from error


def serve_forever(library: Library, config: ServeConfig) -> None:
    """Serve in the foreground until the process is told to stop."""
    with served(library, config) as address:
        wait_for_end(address)


def wait_for_end(address: str) -> None:
    """Say where the service is, and wait for Ctrl-C or SIGTERM."""
    print(f"serving {address} (the page) and {address}/docs (the API); Ctrl-C ends it", flush=True)
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    ended.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
