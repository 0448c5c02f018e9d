"""An overview of the library: the map, the runs, and statistics of the index."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import StringConstraints

from songray.learning import runs
from songray.library import Library
from songray.search import ranking
from songray.search.attributes import Category, Number
from songray.search.candidates import CANDIDATE, Points
from songray.search.version import version_names
from songray.search.words import parse_tags
from songray.service.dependencies import CurrentService, CurrentSnapshot
from songray.service.points import FORMAT, describe_clusters, encode
from songray.service.problems import problem_responses
from songray.service.responses import index_response, json_response, track_json
from songray.service.schema import Id, Map, Positions, Runs, Stats, Tracks
from songray.service.snapshots import IndexSnapshot

NUMBER = r"[-+]?(\d{1,9}(\.\d{0,30})?|\.\d{1,30})(e[-+]?\d{1,2})?"
PointName = Annotated[str, StringConstraints(pattern=r"^\d{1,9}\.\d{1,9}$")]
BOX = rf"^\s*{NUMBER}(\s*,\s*{NUMBER}){{3}}\s*$"

Bounds = Annotated[
    str | None, Query(pattern=BOX, description="left,bottom,right,top", examples=["-1,-1,1,1"])
]

router = APIRouter(tags=["overview"])


async def sample_of(snapshot: IndexSnapshot, bbox: str | None, limit: int) -> Points:
    """A sample of the points of the map in a box, or in all of it."""
    box = tuple(map(float, bbox.split(","))) if bbox else None
    return await snapshot.points(box, limit)  # type: ignore[arg-type]  # BOX has four numbers


@router.get("/v1/map", response_model=Map, responses=problem_responses(422))
async def map_(
    snapshot: CurrentSnapshot,
    bbox: Bounds = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Tracks as points on a plane, similar ones near each other. A sample of those in the box, which contains
    all tracks of the box that a sample of a larger one contains."""
    sample = await sample_of(snapshot, bbox, limit)
    rows = await snapshot.rows(ranking.places(sample))
    points = [
        {name: row[name] for name in ("track_id", "title", "artist_names")} | {"x": x, "y": y}
        for row, (x, y) in zip(rows, sample[["x", "y"]].tolist(), strict=True)
    ]
    return index_response(snapshot, points=points)


@router.get(
    "/v1/points",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": FORMAT},
        **problem_responses(404, 422),
    },
)
async def points(
    snapshot: CurrentSnapshot,
    bbox: Bounds = None,
    limit: Annotated[int, Query(ge=1, le=100_000)] = 100_000,
    color: Annotated[Category | Number, Query(description="attribute of the tracks")] = "genre",
    tag: Annotated[str | None, Query(max_length=100, description="color by a tag's probability")] = None,
    similar_to: Annotated[str | None, Query(max_length=500, description="color by the cosine")] = None,
) -> Response:
    """The sample of /v1/map, up to a hundred times as large, as binary columns with a color each."""
    query = None
    if similar_to:
        seeds = await ranking.find(snapshot, [similar_to])
        (query,) = await snapshot.vectors(ranking.places(seeds.candidates))
    name = parse_tags((tag,), snapshot.version.tags)[0] if tag else color
    sample = await sample_of(snapshot, bbox, limit)
    places = ranking.places(sample)
    colour = await snapshot.attribute(places, name, query)
    if name == "cluster" and query is None:
        genres = await snapshot.attribute(places, "genre", None)
        described = genres if (genres != "").any() else await snapshot.attribute(places, "tag", None)
        colour = describe_clusters(colour, described)
    names = ("run", "version", "tracks")
    header = {name: getattr(snapshot.version, name) for name in names} | {"partial": snapshot.partial}
    content = await asyncio.to_thread(encode, sample, colour, header)
    return Response(content, media_type="application/octet-stream")


@router.get("/v1/points/tracks", response_model=Tracks, responses=problem_responses(404, 422))
async def point_tracks(
    snapshot: CurrentSnapshot,
    point: Annotated[list[PointName], Query(max_length=200, description="<shard>.<label>")],
    version: Annotated[str, Query(max_length=20, description="of the index that the points come from")],
) -> Response:
    """The tracks of points of the map."""
    places = [(int(shard), int(label)) for shard, _, label in (name.partition(".") for name in point)]
    served = snapshot.version
    sizes = [entry.tracks for entry in served.shards]
    are_there = all(shard < len(sizes) and label < sizes[shard] for shard, label in places)
    if version != served.version or not are_there:
        detail = f"version {served.version} is served, which has no such point: load the map anew"
        raise HTTPException(404, detail)
    rows = await snapshot.rows(places)
    return index_response(snapshot, tracks=[track_json(row) for row in rows])


@router.get("/v1/points/positions", response_model=Positions, responses=problem_responses(422))
async def positions(
    snapshot: CurrentSnapshot,
    track: Annotated[list[Id], Query(max_length=200, description="ids of tracks")],
) -> Response:
    """Where tracks are on the map; those that the index does not contain are left out."""
    candidates = await snapshot.find(list(dict.fromkeys(track)))
    places = ranking.places(np.concatenate([np.empty(0, CANDIDATE), *candidates.values()]))
    x, y = [await snapshot.attribute(places, axis, None) for axis in ("x", "y")]
    pairs = np.stack([x, y], axis=1).tolist()
    return index_response(snapshot, positions=dict(zip(candidates, pairs, strict=True)))


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
async def stats(service: CurrentService, snapshot: CurrentSnapshot) -> Response:
    """Statistics of the served index."""
    version, compared = snapshot.version, service.compared()
    names = ("run", "version", "tracks", "dimension", "recall", "recall_target", "parameters")
    content = {name: getattr(version, name) for name in names}
    content |= {"shards": len(version.shards), "tags": sorted(version.tags), "map": version.map_facts or None}
    return json_response(content | {"compared": compared.version.run if compared else None})
