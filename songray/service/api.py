"""The FastAPI application: routes, middlewares, and the state that they share."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from songray.service import opensubsonic
from songray.service.api_keys import ApiKeys
from songray.service.audio import AudioLinks
from songray.service.dependencies import Service
from songray.service.metrics import Metrics
from songray.service.middlewares import SecurityHeadersMiddleware, middlewares
from songray.service.options import IngressConfig
from songray.service.problems import ProblemDetailsAPI
from songray.service.routes import audio, comparison, operation, overview, recommendations, tracks
from songray.service.transcode import Transcoder
from songray.service.webpage import FOLDER

DESCRIPTION = """Recommends music by how it sounds. Errors are problem details (RFC 9457). OpenSubsonic's
extension sonicSimilarity is served under /rest."""
# The first route that matches is called: /v1/tracks/{id}/similar is matched before /v1/tracks/{id}.
ROUTERS = (
    operation.router,
    audio.router,
    recommendations.router,
    tracks.router,
    comparison.router,
    overview.router,
    opensubsonic.router,
)


class Application(ProblemDetailsAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """The outermost one is around Starlette's own, which answers unexpected errors."""
        return SecurityHeadersMiddleware(super().build_middleware_stack())


def create_api(service: Callable[[], Service], config: IngressConfig, keys: ApiKeys) -> FastAPI:
    """`service` is called by each request, since the application exists before the service of its process."""
    metrics = Metrics()
    stack = middlewares(keys, metrics, config.access_log)
    if config.cors_origins:
        cors = Middleware(
            CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
        stack.insert(0, cors)
    api = Application(
        title="songray",
        summary="What sounds like this?",
        version="1",
        description=DESCRIPTION,
        middleware=stack,
        docs_url=None,  # its page, and that of Redoc, would load scripts from another host
        redoc_url=None,
    )
    api.state.service, api.state.keys, api.state.metrics = service, keys, metrics
    api.state.export_paths, api.state.preview_hosts = config.export_paths, config.external.preview_hosts
    api.state.audio_links, api.state.transcoder = AudioLinks(keys), Transcoder()
    for router in ROUTERS:
        api.include_router(router)
    api.mount("/page", StaticFiles(directory=FOLDER))
    return api
