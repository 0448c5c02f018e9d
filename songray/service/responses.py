"""Bodies of successful responses. They are not validated, since storage was, which takes most of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import Response

from songray.library import Row
from songray.search.ranking import Recommendation
from songray.service.snapshots import IndexSnapshot


def json_response(content: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def index_response(snapshot: IndexSnapshot, **content: Any) -> Response:
    """Content with the run and the version of the index that it comes from."""
    version = snapshot.version
    source = {"run": version.run, "version": version.version, "partial": snapshot.partial}
    return json_response({**content, **source})


def track_json(row: Row) -> dict[str, Any]:
    """A row of the catalogue with the URL of its preview in place of its location, which may be a private
    path."""
    track = {name: value for name, value in row.items() if name != "location"}
    location = row["location"] or ""
    track["preview"] = location if location.startswith(("http://", "https://")) else None
    return track


def matches_json(recommendations: Sequence[Recommendation]) -> list[dict[str, Any]]:
    return [
        {
            "track": track_json(recommendation.track),
            "similarity": recommendation.similarity,
            "cosine": recommendation.cosine,
            "nearest_seed": recommendation.nearest_seed,
            "nearest_seed_similarity": recommendation.nearest_seed_similarity,
        }
        for recommendation in recommendations
    ]
