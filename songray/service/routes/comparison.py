"""A listening test: the neighbours of a track by two runs, and which of them listeners prefer."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Annotated

import pyarrow as pa
from fastapi import APIRouter, HTTPException, Query, Response

from songray.errors import StorageError
from songray.library import Library
from songray.search import ranking
from songray.service.dependencies import CurrentService, CurrentSnapshot, Service
from songray.service.parameters import JudgementRequest
from songray.service.problems import problem_responses, unavailable
from songray.service.responses import json_response, matches_json, track_json
from songray.service.schema import Comparison, Id
from songray.service.snapshots import IndexSnapshot

router = APIRouter(tags=["comparison"])


def other_run(service: Service) -> IndexSnapshot:
    """The index with which the served one is compared. Raises HTTPException where there is none."""
    other = service.compared()
    if other is None:
        raise HTTPException(404, "no runs are compared: start `songray serve --runs` with two of them")
    return other


@router.get("/v1/comparison", response_model=Comparison, responses=problem_responses(404, 422))
async def comparison(
    service: CurrentService,
    snapshot: CurrentSnapshot,
    track: Annotated[Id, Query(description="id of the track whose neighbours are compared")],
    k: Annotated[int, Query(ge=1, le=50, description="number of tracks of each list")] = 5,
) -> Response:
    """The tracks most similar to a track by two runs, in random order, so that a client that shows no names
    is a blind test."""
    options = ranking.RankingOptions(k)
    lists, row = [], None
    for one in random.sample([snapshot, other_run(service)], 2):
        row, matches = await ranking.similar(one, track, options)
        version = {"run": one.version.run, "version": one.version.version, "partial": one.partial}
        lists.append({**version, "similar": matches_json(matches)})
    assert row is not None
    return json_response({"track": track_json(row), "lists": lists})


@router.post("/v1/judgements", status_code=204, responses=problem_responses(400, 404, 413, 422))
async def judge(body: JudgementRequest, service: CurrentService, snapshot: CurrentSnapshot) -> Response:
    """Store which of two lists a listener prefers."""
    runs = {snapshot.version.run, other_run(service).version.run}
    if {body.left, body.right} != runs:
        raise HTTPException(422, f"left and right are not {' and '.join(sorted(runs))}, which are compared")
    try:
        await asyncio.to_thread(store, service.library, body)
    except StorageError as error:
        raise unavailable(f"the judgement was not stored: {error}") from error
    return Response(status_code=204)


def store(library: Library, judgement: JudgementRequest) -> None:
    """Add a judgement as a file of its own. Raises StorageError."""
    table, at = library.table("judgements"), datetime.now(UTC)
    row = {"at": at, **judgement.model_dump()}
    table.append(pa.Table.from_pylist([row], table.schema()), f"{at:%Y%m%d-%H%M%S-%f}")
