"""The questions over HTTP: what is asked is checked, passed to the recommender, and its answer written.

Answers are written as they are: what is in them has been checked when it was stored.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_origin

import orjson
from fastapi import FastAPI, File, Header, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams

from songray.errors import NotEnoughTracks, UnknownTrack
from songray.learning import runs
from songray.library import Library, Vectors
from songray.search import ranking as recommender
from songray.search import version as versions
from songray.search.ranking import Recommendation, Searcher
from songray.search.shard import Place, Points, Row
from songray.search.version import Manifest
from songray.service import playlists, problems
from songray.service.problems import Refusal, documented
from songray.service.schema import (
    Continue,
    Health,
    Heard,
    Map,
    Matches,
    PathChoice,
    Ready,
    Recommend,
    Runs,
    Similar,
    SimilarChoice,
    SoundChoice,
    Stats,
    Track,
    Tracks,
)

DESCRIPTION = """Songs that sound alike, found by listening. Errors are problem details (RFC 9457).
OpenSubsonic's extension sonicSimilarity answers under /rest."""
NUMBER = r"[-+]?(\d{1,9}(\.\d{0,30})?|\.\d{1,30})(e[-+]?\d{1,2})?"
BOX = rf"^\s*{NUMBER}(\s*,\s*{NUMBER}){{3}}\s*$"

TrackId = Annotated[str, Path(max_length=500, examples=["deezer:3135556"])]
Box = tuple[float, float, float, float]  # left, bottom, right, top
Asked = TypeVar("Asked", bound=BaseModel)


class Live(Searcher, Protocol):
    """A version of the index, for one request."""

    manifest: Manifest
    partial: bool  # some part of it has not answered this request

    async def search(self, text: str, limit: int) -> list[Place]:
        """Tracks whose title, artists or album are like the text, best first; without text, the first."""

    async def points(self, bbox: Box | None, limit: int) -> Points:
        """Where tracks are on the map, those of the lowest lot first."""


class Service(Protocol):
    """What the application asks of the process that it runs in."""

    library: Library

    def live(self) -> Live:
        """Raises Refusal while no version is loaded."""

    async def embed(self, audio: bytes) -> Vectors:
        """(dimension,), of length 1. Raises Refusal on what cannot be heard."""

    async def first(self, source: str, words: str) -> tuple[str, bytes]:
        """Id and audio of the first track that a source finds. Raises Refusal."""


def application(service: Callable[[], Service]) -> FastAPI:
    """The API; `service` gives the process's own service once a request is there."""
    api = FastAPI(title="songray", summary="What sounds like this?", version="1", description=DESCRIPTION)
    problems.install(api)

    @api.exception_handler(UnknownTrack)
    async def unknown(request: Request, error: UnknownTrack) -> Response:
        return problems.answer(404, str(error))

    @api.exception_handler(NotEnoughTracks)
    async def too_few(request: Request, error: NotEnoughTracks) -> Response:
        return problems.answer(422, str(error))

    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(files("songray.service").joinpath("page.html").read_text("utf-8"))

    @api.get("/healthz", tags=["operation"], response_model=Health)
    async def health() -> Response:
        """Whether the process lives; it may still be loading."""
        return written({"status": "ok"})

    @api.get("/readyz", tags=["operation"], response_model=Ready, responses=documented())
    async def ready() -> Response:
        """Whether questions are answered, and from what."""
        manifest = service().live().manifest
        about = {"run": manifest.run, "version": manifest.version, "tracks": manifest.tracks}
        return written({"status": "ready", **about})

    @api.get("/v1/tracks", tags=["tracks"], response_model=Tracks, responses=documented(422))
    async def tracks(
        q: Annotated[str, Query(max_length=200, description="words of title, artists or album")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Tracks by title, artists and album, best match first, tolerant of accents and typing; without
        words, the first ones."""
        live = service().live()
        rows = await live.rows(await live.search(q, limit))
        return answered(live, tracks=[shown(row) for row in rows])

    @api.get(
        "/v1/tracks/{track_id:path}/similar",
        tags=["questions"],
        response_model=Similar,
        responses=documented(404, 422),
        openapi_extra={"parameters": parameters(SimilarChoice)},
    )
    async def similar(track_id: TrackId, request: Request) -> Response:
        """What sounds most like a track, best first; never the track itself or another recording of it."""
        live, choice = service().live(), chosen(SimilarChoice, request.query_params)
        seeds = await recommender.find(live, [track_id])
        (row,) = await live.rows(recommender.places(seeds.candidates))
        wish = choice.wish(choice)
        found = await recommender.nearest_to(live, seeds.vectors[0], wish, seeds, seeds.candidates)
        return answered(live, track=shown(row), similar=matches(found))

    @api.get(
        "/v1/tracks/{track_id:path}", tags=["tracks"], response_model=Track, responses=documented(404, 422)
    )
    async def track(track_id: TrackId) -> Response:
        """What the catalogue says of a track."""
        return written(shown(await row_of(service().live(), track_id)))

    @api.post(
        "/v1/recommend",
        tags=["questions"],
        response_model=Matches,
        responses=documented(400, 404, 413, 422),
    )
    async def recommend(question: Recommend) -> Response:
        """What sounds like some tracks and unlike others: nearest to the sum of their vectors, weighted,
        those of the unlike ones subtracted."""
        live = service().live()
        like, unlike = ([seed.meant() for seed in seeds] for seeds in (question.like, question.unlike))
        found = await recommender.recommend(live, like, unlike, question.wish(question.filters))
        return answered(live, similar=matches(found))

    @api.post(
        "/v1/similar",
        tags=["questions"],
        response_model=Heard,
        responses=documented(400, 404, 413, 415, 422, 502),
    )
    async def similar_to_sound(
        request: Request,
        choice: Annotated[SoundChoice, Query()],
        audio: Annotated[UploadFile | None, File(description="at most 20 MB and 15 minutes")] = None,
    ) -> Response:
        """What sounds like a file, in any common format, or like what a source finds first for some words.
        The sound is not kept."""
        heard, sound = await sound_of(request, choice, audio, service())
        live = service().live()
        found = await recommender.nearest_to(live, await service().embed(sound), choice.wish(choice))
        return answered(live, heard=heard, similar=matches(found))

    @api.get("/v1/path", tags=["questions"], response_model=Tracks, responses=documented(404, 422))
    async def path(
        choice: Annotated[PathChoice, Query()],
    ) -> Response:
        """A walk from one track to another, in even steps, without repeats."""
        if choice.start == choice.end:
            raise Refusal(422, f"from and to are both {choice.start}: there is no way to walk")
        live = service().live()
        rows = await recommender.path(live, choice.start, choice.end, choice.steps, choice.meant())
        return answered(live, tracks=[shown(row) for row in rows])

    @api.post(
        "/v1/playlist",
        tags=["questions"],
        response_model=Tracks,
        responses={**documented(400, 404, 413, 422), 200: {"content": playlists.DOCUMENTED}},
    )
    async def playlist(
        question: Continue,
        format: Annotated[
            Literal["json", "m3u8", "csv", "xspf"] | None, Query(description="else as Accept says, else json")
        ] = None,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        """Tracks that continue a playlist, in an order that flows."""
        live = service().live()
        seeds = [seed.meant() for seed in question.seeds]
        rows = await recommender.playlist(live, seeds, question.wish(question.filters))
        found = [shown(row) for row in rows]
        wanted = format or playlists.preferred(accept)
        if wanted == "json":
            return answered(live, tracks=found)
        media_type, write = playlists.FORMATS[wanted]
        return Response(write(found), media_type=media_type)

    @api.get("/v1/map", tags=["overview"], response_model=Map, responses=documented(422))
    async def map_(
        bbox: Annotated[
            str | None, Query(pattern=BOX, description="left,bottom,right,top", examples=["-1,-1,1,1"])
        ] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> Response:
        """Tracks on a plane on which those near each other sound alike: a sample of those in the box, to
        which a smaller box only adds."""
        live = service().live()
        box = tuple(map(float, bbox.split(","))) if bbox else None
        found = await live.points(box, limit)  # type: ignore[arg-type]
        rows = await live.rows(recommender.places(found))
        points = [
            {name: row[name] for name in ("track_id", "title", "artist_names")} | {"x": x, "y": y}
            for row, (x, y) in zip(rows, found[["x", "y"]].tolist(), strict=True)
        ]
        return answered(live, points=points)

    @api.get("/v1/runs", tags=["overview"], response_model=Runs, responses=documented())
    async def runs_of_library() -> Response:
        """The trained models, and the versions of their indexes."""
        serving = service().live().manifest.run
        return written({"serving": serving, "runs": await asyncio.to_thread(told_runs, service().library)})

    @api.get("/v1/stats", tags=["overview"], response_model=Stats, responses=documented())
    async def stats() -> Response:
        """What the index that answers is like."""
        manifest = service().live().manifest
        names = ("run", "version", "tracks", "dimension", "recall", "recall_target", "parameters")
        return written({name: getattr(manifest, name) for name in names} | {"shards": len(manifest.shards)})

    return api


def parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """A model's fields as parameters of a URL, for the OpenAPI document."""
    fields = model.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]


def chosen(model: type[Asked], query: QueryParams) -> Asked:
    """Parameters of a URL as a model; raises RequestValidationError. FastAPI's own way takes 0.4 ms for so
    many fields: too much for the question that is asked most."""
    lists = lists_of(model)
    try:
        return model.model_validate(
            {name: query.getlist(name) if name in lists else query[name] for name in query}
        )
    except ValidationError as error:
        problems = [one | {"loc": ("query", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(problems) from error


@cache
def lists_of(model: type[BaseModel]) -> set[str]:
    """Fields that a URL may name several times."""
    return {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}


def written(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def answered(live: Live, **content: Any) -> Response:
    return written({**content, "version": live.manifest.version, "partial": live.partial})


def shown(row: Row) -> dict[str, Any]:
    """A row as it is answered: the place of a file in somebody's folder is nobody else's business."""
    track = {name: value for name, value in row.items() if name != "location"}
    location = row["location"] or ""
    track["preview"] = location if location.startswith(("http://", "https://")) else None
    return track


def matches(found: Sequence[Recommendation]) -> list[dict[str, Any]]:
    return [
        {
            "track": shown(one.track),
            "similarity": one.similarity,
            "nearest_seed": one.nearest_seed,
            "nearest_seed_similarity": one.nearest_seed_similarity,
        }
        for one in found
    ]


async def row_of(live: Live, track_id: str) -> Row:
    """Raises UnknownTrack."""
    seeds = await recommender.find(live, [track_id])
    (row,) = await live.rows(recommender.places(seeds.candidates))
    return row


async def sound_of(
    request: Request, choice: SoundChoice, audio: UploadFile | None, service: Service
) -> tuple[str, bytes]:
    """What it is that is asked about, and its bytes. Raises Refusal."""
    if choice.source and choice.q and audio is None:
        return await service.first(choice.source, choice.q)
    if choice.source or choice.q:
        raise Refusal(422, "give either a file named audio, or both source and q")
    content_type = request.headers.get("content-type", "")
    if audio is None and not re.match(r"multipart/form-data\b", content_type, re.IGNORECASE):
        raise Refusal(
            415, f"Content-Type is {content_type[:100]!r}: send multipart/form-data, with a file named audio"
        )
    if audio is None:
        raise Refusal(422, "there is no file named audio: give one, or both source and q")
    return audio.filename or "audio", await audio.read()


def told_runs(library: Library) -> list[dict[str, Any]]:
    found = [runs.choose(library, name) for name in runs.finished(library)]
    return [
        {
            "name": run.name,
            "model": run.model,
            "metrics": run.metrics,
            "versions": [version for version in versions.versions(library, run.name)],
        }
        for run in found
    ]
