"""Recommendations: tracks similar to tracks or to audio, paths, and continuations of playlists."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_origin

from fastapi import APIRouter, File, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from songray.errors import QueryError
from songray.search import paths, ranking
from songray.search.words import parse_question
from songray.service import playlists
from songray.service.dependencies import CurrentService, CurrentSnapshot, Service
from songray.service.parameters import (
    AudioParameters,
    PathParameters,
    PlaylistRequest,
    RecommendRequest,
    SimilarParameters,
    TextParameters,
)
from songray.service.problems import problem_responses
from songray.service.responses import index_response, matches_json, track_json
from songray.service.routes.tracks import TrackId
from songray.service.schema import Matches, SimilarToAudio, SimilarToText, SimilarToTrack, Tracks

Parameters = TypeVar("Parameters", bound=BaseModel)

router = APIRouter(tags=["recommendations"])


def parse_query(model: type[Parameters], request: Request) -> Parameters:
    """Query parameters as a model. FastAPI's own parsing of so many fields takes 0.4 ms, too long for the
    most frequent request. Raises RequestValidationError."""
    query, lists = request.query_params, list_fields(model)
    values = {name: query.getlist(name) if name in lists else query[name] for name in query}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(
            [item | {"loc": ("query", *item["loc"])} for item in error.errors()]
        ) from error


@cache
def list_fields(model: type[BaseModel]) -> set[str]:
    """Fields that a query string may repeat."""
    return {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}


def document_query(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a model as query parameters in the OpenAPI document."""
    properties = model.model_json_schema()["properties"]
    return {
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
    }


@router.get(
    "/v1/tracks/{track_id:path}/similar",
    response_model=SimilarToTrack,
    responses=problem_responses(404, 422),
    openapi_extra=document_query(SimilarParameters),
)
async def similar(track_id: TrackId, request: Request, snapshot: CurrentSnapshot) -> Response:
    """Tracks similar to a track, most similar first, without the track itself and other ids of its
    recording."""
    parameters = parse_query(SimilarParameters, request)
    options = parameters.to_options(parameters, snapshot.version.tags)
    row, recommendations = await ranking.similar(snapshot, track_id, options)
    return index_response(snapshot, track=track_json(row), similar=matches_json(recommendations))


@router.post("/v1/recommend", response_model=Matches, responses=problem_responses(400, 404, 413, 422))
async def recommend(body: RecommendRequest, snapshot: CurrentSnapshot) -> Response:
    """Tracks similar to the liked and not to the disliked ones: nearest to the weighted sum of the vectors
    of the liked tracks, minus those of the disliked ones."""
    like = [seed.to_seed() for seed in body.like]
    unlike = [seed.to_seed() for seed in body.unlike]
    labels = snapshot.version.tags
    recommendations = await ranking.recommend(snapshot, like, unlike, body.to_options(body.filters, labels))
    return index_response(snapshot, similar=matches_json(recommendations))


@router.get(
    "/v1/similar",
    response_model=SimilarToText,
    responses=problem_responses(422),
    openapi_extra=document_query(TextParameters),
)
async def similar_to_text(request: Request, service: CurrentService) -> Response:
    """Tracks that sound as words describe, such as "calm piano without voice". The words are looked up in a
    list of synonyms of the index's tags; "no", "not" and "without" exclude. `similarity` is the logistic
    function of the mean, by the weights, of the tags' logits, each in standard deviations from the mean of
    the catalogue. Where no word is known, and the run has the text encoder of CLAP, `weights` is empty, and
    the tracks are those nearest to the vector of the text."""
    parameters, snapshot = parse_query(TextParameters, request), service.snapshot()
    labels = snapshot.version.tags
    options = parameters.to_options(parameters, labels)
    try:
        weights = parse_question(parameters.text, labels)
    except QueryError:
        vector = await service.embed_text(parameters.text, snapshot.version.run)
        if vector is None:
            raise
        weights, recommendations = {}, await ranking.nearest_to(snapshot, vector, options)
    else:
        recommendations = await ranking.described(snapshot, weights, options)
    return index_response(snapshot, weights=weights, similar=matches_json(recommendations))


@router.post(
    "/v1/similar",
    response_model=SimilarToAudio,
    responses=problem_responses(400, 404, 413, 415, 422, 502),
)
async def similar_to_audio(
    request: Request,
    service: CurrentService,
    parameters: Annotated[AudioParameters, Query()],
    audio: Annotated[UploadFile | None, File(description="at most 20 MB and 15 minutes")] = None,
) -> Response:
    """Tracks similar to an audio file of any common format, or to the first result of an external source.
    The audio is not stored."""
    query, content = await query_audio(request, parameters, audio, service)
    snapshot = service.snapshot()
    options = parameters.to_options(parameters, snapshot.version.tags)
    vector = await service.embed(content, snapshot.version.run)
    recommendations = await ranking.nearest_to(snapshot, vector, options)
    return index_response(snapshot, query=query, similar=matches_json(recommendations))


async def query_audio(
    request: Request, parameters: AudioParameters, audio: UploadFile | None, service: Service
) -> tuple[str, bytes]:
    """A name for the query, and its audio. Raises HTTPException."""
    if parameters.source and parameters.q and audio is None:
        return await service.first_preview(parameters.source, parameters.q)
    if parameters.source or parameters.q:
        raise HTTPException(422, "give either a file named audio, or both source and q")
    content_type = request.headers.get("content-type", "")
    if audio is None and not re.match(r"multipart/form-data\b", content_type, re.IGNORECASE):
        expected = "send multipart/form-data with a file named audio"
        raise HTTPException(415, f"Content-Type is {content_type[:100]!r}: {expected}")
    if audio is None:
        raise HTTPException(422, "the form contains no file named audio: give one, or both source and q")
    return audio.filename or "audio", await audio.read()


@router.get("/v1/path", response_model=Tracks, responses=problem_responses(404, 422))
async def path(parameters: Annotated[PathParameters, Query()], snapshot: CurrentSnapshot) -> Response:
    """A path from one track to another, in steps of similar size, without repetitions."""
    start, end = parameters.start, parameters.end
    if start == end:
        raise HTTPException(422, f"from and to are both {start}: a path needs two tracks")
    filters = parameters.to_filters(snapshot.version.tags)
    rows = await paths.path(snapshot, start, end, parameters.steps, filters)
    return index_response(snapshot, tracks=[track_json(row) for row in rows])


@router.post(
    "/v1/playlist",
    response_model=Tracks,
    responses={**problem_responses(400, 404, 413, 422), 200: {"content": playlists.DOCUMENTATION}},
)
async def playlist(
    body: PlaylistRequest,
    snapshot: CurrentSnapshot,
    format: Annotated[
        Literal["json", "m3u8", "csv", "xspf"] | None,
        Query(description="by default as the header Accept requests, else json"),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Tracks that continue a playlist, each similar to the one before it."""
    seeds = [seed.to_seed() for seed in body.seeds]
    rows = await paths.playlist(snapshot, seeds, body.to_options(body.filters, snapshot.version.tags))
    tracks = [track_json(row) for row in rows]
    chosen = format or playlists.accepted_format(accept)
    if chosen == "json":
        return index_response(snapshot, tracks=tracks)
    media_type, write = playlists.FORMATS[chosen]
    return Response(write(tracks), media_type=media_type)
