"""An overview of the library: the map, the runs, and statistics of the index."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from songray.learning import runs
from songray.library import Library
from songray.search import ranking
from songray.search.version import version_names
from songray.service.dependencies import CurrentService, CurrentSnapshot
from songray.service.problems import problem_responses
from songray.service.responses import index_response, json_response
from songray.service.schema import Map, Runs, Stats

NUMBER = r"[-+]?(\d{1,9}(\.\d{0,30})?|\.\d{1,30})(e[-+]?\d{1,2})?"
BOX = rf"^\s*{NUMBER}(\s*,\s*{NUMBER}){{3}}\s*$"

router = APIRouter(tags=["overview"])


@router.get("/v1/map", response_model=Map, responses=problem_responses(422))
async def map_(
    snapshot: CurrentSnapshot,
    bbox: Annotated[
        str | None, Query(pattern=BOX, description="left,bottom,right,top", examples=["-1,-1,1,1"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Tracks as points on a plane, similar ones near each other. A sample of those in the box, which contains
    all tracks of the box that a sample of a larger one contains."""
    box = tuple(map(float, bbox.split(","))) if bbox else None
    sample = await snapshot.points(box, limit)  # type: ignore[arg-type]  # BOX has four numbers
    rows = await snapshot.rows(ranking.places(sample))
    points = [
        {name: row[name] for name in ("track_id", "title", "artist_names")} | {"x": x, "y": y}
        for row, (x, y) in zip(rows, sample[["x", "y"]].tolist(), strict=True)
    ]
    return index_response(snapshot, points=points)


@router.get("/v1/runs", response_model=Runs, responses=problem_responses())
async def list_runs(service: CurrentService, snapshot: CurrentSnapshot) -> Response:
    """The trained models, and the versions of their indexes."""
    summaries = await asyncio.to_thread(run_summaries, service.library)
    return json_response({"serving": snapshot.version.run, "runs": summaries})


def run_summaries(library: Library) -> list[dict[str, Any]]:
    return [
        {
            "name": run.name,
            "model": run.model,
            "metrics": run.metrics,
            "versions": version_names(library, run.name),
        }
        for name in library.folders("runs")
        if (run := runs.find(library, name))
    ]


@router.get("/v1/stats", response_model=Stats, responses=problem_responses())
async def stats(snapshot: CurrentSnapshot) -> Response:
    """Statistics of the served index."""
    names = ("run", "version", "tracks", "dimension", "recall", "recall_target", "parameters")
    content = {name: getattr(snapshot.version, name) for name in names}
    return json_response(content | {"shards": len(snapshot.version.shards)})
