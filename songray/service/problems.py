"""Errors as problem details (RFC 9457): handlers of exceptions, and their part of the OpenAPI document."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from songray.errors import QueryError, UnknownTrack

logger = logging.getLogger("ray.serve")
MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
RETRY_AFTER_SECONDS = 1  # after which an overloaded service accepts another request


class Problem(BaseModel):
    """An error, as RFC 9457 defines it."""

    type: str = Field(default="about:blank", description="URI of the problem's type; about:blank: see title")
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["not in the index: deezer:1"])
    errors: list[dict[str, Any]] = Field(
        default=[], description="where, and how, the request violates this document"
    )


def problem_response(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, **more)
    content = problem.model_dump(exclude=None if problem.errors else {"errors"})
    return JSONResponse(content, status, headers, MEDIA_TYPE)


def unavailable(detail: str, retry_after_seconds: float = RETRY_AFTER_SECONDS) -> HTTPException:
    """An error with status 503, for what is overloaded or not ready yet."""
    return HTTPException(503, detail, {"Retry-After": str(max(1, round(retry_after_seconds)))})


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = _allowed(request) if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else error.headers
    return problem_response(error.status_code, str(error.detail), headers)


def _allowed(request: Request) -> dict[str, str]:
    """The methods of all routes of a path; Starlette names those of the first one."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    routes = request.app.routes
    allowed = [m for m, scope in scopes.items() if any(r.matches(scope)[0] == Match.FULL for r in routes)]
    return {"Allow": ", ".join(allowed)}


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [{"where": list(item["loc"]), "what": item["msg"]} for item in error.errors()]
    detail = "; ".join(f"{'.'.join(map(str, item['where']))}: {item['what']}" for item in errors)
    return problem_response(422, detail, errors=errors)


async def _unknown_track(request: Request, error: Exception) -> JSONResponse:
    return problem_response(404, str(error))


async def _query_error(request: Request, error: Exception) -> JSONResponse:
    return problem_response(422, str(error))


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response(500, "an unexpected error; the service's log contains its traceback")


HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: _http_error,
    RequestValidationError: _validation_error,
    UnknownTrack: _unknown_track,
    QueryError: _query_error,
    Exception: _unexpected_error,
}

DESCRIPTIONS = {
    400: "The request cannot be parsed",
    401: "A key is needed: none was sent, or it is not valid",
    403: "The link has expired, or is not signed",
    404: "A track is not in the index",
    408: "The request took too long",
    413: "The request is too large",
    415: "Not an audio format that can be decoded",
    422: "A value is out of range or contradicts another one, or the query leaves no direction to search in",
    502: "The external source failed",
    503: "Overloaded or not ready: retry after the seconds that Retry-After names",
}
ANY_REQUEST = (401, 408, 503)
PLAIN_TEXT = (408, 503)  # also sent by Ray Serve itself, as plain text


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for the OpenAPI document: these statuses, and those of any request."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *ANY_REQUEST}):
        content: dict[str, Any] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        if status in PLAIN_TEXT:
            content["text/plain"] = {"schema": {"type": "string"}}
        responses[status] = {"description": DESCRIPTIONS[status], "content": content}
        if status == 503:
            responses[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return responses


class ProblemDetailsAPI(FastAPI):
    """An application all of whose errors are problem details, as its OpenAPI document says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(exception_handlers=HANDLERS, **options)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        return document
