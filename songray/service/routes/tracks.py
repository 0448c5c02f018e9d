"""Tracks of the catalogue: search, and one by its id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from songray.library import Row
from songray.search import ranking
from songray.service.dependencies import CurrentSnapshot
from songray.service.problems import problem_responses
from songray.service.responses import index_response, json_response, track_json
from songray.service.schema import Track, Tracks
from songray.service.snapshots import IndexSnapshot

TrackId = Annotated[str, Path(max_length=500, examples=["deezer:3135556"])]

router = APIRouter(tags=["tracks"])


@router.get("/v1/tracks", response_model=Tracks, responses=problem_responses(422))
async def search(
    snapshot: CurrentSnapshot,
    q: Annotated[str, Query(max_length=200, description="words of title, artists or album")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Tracks by title, artists and album, best match first; tolerates missing accents and misspellings.
    Without words, a sample."""
    rows = await snapshot.rows(await snapshot.search(q, limit))
    return index_response(snapshot, tracks=[track_json(row) for row in rows])


@router.get("/v1/tracks/{track_id:path}", response_model=Track, responses=problem_responses(404, 422))
async def track(track_id: TrackId, snapshot: CurrentSnapshot) -> Response:
    """One track."""
    return json_response(track_json(await track_row(snapshot, track_id)))


async def track_row(snapshot: IndexSnapshot, track_id: str) -> Row:
    """Raises UnknownTrack."""
    seeds = await ranking.find(snapshot, [track_id])
    (row,) = await snapshot.rows(ranking.places(seeds.candidates))
    return row
