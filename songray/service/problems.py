"""Errors as problem details (RFC 9457): every answer that is none says what was wrong, and where."""

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

logger = logging.getLogger("ray.serve")
MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1  # after which an overloaded service may be asked again


class Problem(BaseModel):
    """What went wrong, after RFC 9457."""

    type: str = Field(
        default="about:blank", description="what kind of problem; about:blank: its title says it"
    )
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["not in the index: deezer:1"])
    errors: list[dict[str, Any]] = Field(
        default=[], description="where the request breaks the description of this API, and how"
    )


class Refusal(Exception):
    """Why there is no answer, with the status of HTTP that fits."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, dict(headers or {})


def overloaded(detail: str, retry_seconds: float = RETRY_SECONDS) -> Refusal:
    """Come again: something is full, or about to come back."""
    return Refusal(503, detail, {"Retry-After": str(max(1, round(retry_seconds)))})


def answer(status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, **more)
    content = problem.model_dump(exclude=None if problem.errors else {"errors"})
    return JSONResponse(content, status, headers, MEDIA_TYPE)


MEANINGS = {
    400: "The request cannot be read",
    401: "A key is needed, and this is none",
    404: "There is no such track",
    408: "It took too long",
    413: "The request is too large",
    415: "Not a format that can be read",
    422: "Something in the request is out of range, or contradicts itself",
    502: "The source that was to be asked did not give what was needed",
    503: "Overloaded, or not ready: come again after as many seconds as Retry-After says",
}
EVERYWHERE = (401, 408, 503)  # any question may meet these
OF_SERVE = (408, 503)  # Ray Serve answers with these on its own, as plain text


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: the problems that a question may meet."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *EVERYWHERE}):
        schema = {"$ref": "#/components/schemas/Problem"}
        found[status] = {"description": MEANINGS[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        if status in OF_SERVE:
            found[status]["content"]["text/plain"] = {"schema": {"type": "string"}}
        if status == 503:
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return found


def install(api: FastAPI) -> None:
    """Have all errors of an application answered as problems, and its document describe these."""
    described = api.openapi

    def document() -> dict[str, Any]:
        whole = described()
        components = whole.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{}, {"key": []}]
        return whole

    api.openapi = document  # type: ignore[method-assign]

    @api.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return answer(error.status, str(error), error.headers)

    @api.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), error.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"where": list(one["loc"]), "what": one["msg"]} for one in error.errors()]
        told = "; ".join(f"{'.'.join(map(str, one['where']))}: {one['what']}" for one in errors)
        return answer(422, told, errors=errors)

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(500, "This should not have happened; the service's log has more")
