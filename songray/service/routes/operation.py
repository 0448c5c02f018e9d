"""The page, and what operation needs: health, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from songray.search.version import merge_hosts
from songray.service.dependencies import CurrentSnapshot
from songray.service.metrics import Metrics
from songray.service.problems import problem_responses
from songray.service.responses import json_response
from songray.service.schema import Health, Ready
from songray.service.webpage import HTML, policy

router = APIRouter(tags=["operation"])


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    """The page; audio is played from the hosts that the served index names, and from where the services
    that locate previews have them."""
    external = [f"https://*.{host}" for host in request.app.state.preview_hosts]
    try:
        version = request.app.state.service().snapshot().version
    except HTTPException:  # it is being loaded
        hosts = None
    else:
        hosts = merge_hosts([external, *(entry.hosts for entry in version.shards)])
    return HTMLResponse(HTML, headers={"Content-Security-Policy": policy(hosts)})


@router.get("/healthz", response_model=Health)
async def health() -> Response:
    """Whether the process is alive; its index may still be loading."""
    return json_response({"status": "ok"})


@router.get("/readyz", response_model=Ready, responses=problem_responses())
async def ready(snapshot: CurrentSnapshot) -> Response:
    """Whether an index is loaded, and which."""
    content = {name: getattr(snapshot.version, name) for name in ("run", "version", "tracks")}
    return json_response({"status": "ready", **content})


@router.get("/metrics", response_class=Response, responses=problem_responses())
async def metrics(request: Request, snapshot: CurrentSnapshot) -> Response:
    """Metrics of this process, for Prometheus."""
    registry: Metrics = request.app.state.metrics
    return Response(registry.render(snapshot.version), media_type=CONTENT_TYPE_LATEST)
