"""Tracks of the catalogue: search, and one by its id."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urljoin

from fastapi import APIRouter, Path, Query, Request, Response

from songray.errors import QueryError
from songray.library import Row
from songray.search import ranking
from songray.search.words import parse_question
from songray.service import playlists
from songray.service.audio import AudioLinks
from songray.service.dependencies import CurrentSnapshot
from songray.service.parameters import ExportRequest
from songray.service.problems import problem_responses
from songray.service.responses import index_response, json_response, track_json
from songray.service.schema import SearchedTracks, Track
from songray.service.snapshots import IndexSnapshot

TrackId = Annotated[str, Path(max_length=500, examples=["deezer:3135556"])]

router = APIRouter(tags=["tracks"])


@router.get("/v1/tracks", response_model=SearchedTracks, responses=problem_responses(422))
async def search(
    snapshot: CurrentSnapshot,
    q: Annotated[str, Query(max_length=200, description="words of title, artists or album")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Tracks by title, artists and album, best match first; tolerates missing accents and misspellings.
    Without words, a sample."""
    rows = await snapshot.rows(await snapshot.search(q, limit))
    try:
        weights = parse_question(q, snapshot.version.tags)
    except QueryError:
        weights = {}
    return index_response(snapshot, tracks=[track_json(row) for row in rows], weights=weights)


@router.post(
    "/v1/export",
    response_class=Response,
    responses={200: {"content": playlists.DOCUMENTATION}, **problem_responses(400, 404, 413, 422)},
)
async def export(
    body: ExportRequest,
    request: Request,
    snapshot: CurrentSnapshot,
    format: Annotated[Literal["m3u8", "csv", "xspf"], Query()] = "m3u8",
) -> Response:
    """A playlist of tracks as a file. A track without a public preview is at the path of its file, where the
    service has that option, or else at a link to this service, which expires where it needs a key."""
    seeds = await ranking.find(snapshot, body.tracks)
    links: AudioLinks = request.app.state.audio_links
    rows = await snapshot.rows(ranking.places(seeds.candidates))
    tracks = [track_json(row) for row in rows]
    for track, row in zip(tracks, rows, strict=True):
        is_file = request.app.state.export_paths and str(row["location"]).startswith("/")
        own = row["location"] if is_file else urljoin(str(request.base_url), links.create(track["track_id"]))
        track["preview"] = track["preview"] or own
    media_type, write = playlists.FORMATS[format]
    headers = {"Content-Disposition": f'attachment; filename="songray.{format}"'}
    return Response(write(tracks), media_type=media_type, headers=headers)


@router.get("/v1/tracks/{track_id:path}", response_model=Track, responses=problem_responses(404, 422))
async def track(track_id: TrackId, snapshot: CurrentSnapshot) -> Response:
    """One track."""
    return json_response(track_json(await track_row(snapshot, track_id)))


async def track_row(snapshot: IndexSnapshot, track_id: str) -> Row:
    """Raises UnknownTrack."""
    seeds = await ranking.find(snapshot, [track_id])
    (row,) = await snapshot.rows(ranking.places(seeds.candidates))
    return row
