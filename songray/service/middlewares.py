"""Middlewares of the application, as pure ASGI classes, from the outermost to the innermost one.

SecurityHeadersMiddleware   headers for browsers; also around Starlette's answers to unexpected errors
MetricsMiddleware           counts and durations by route, for Prometheus
AccessLogMiddleware         one line of JSON for each request
AuthenticationMiddleware    Starlette's, with the API keys of this service as its backend
BodyLimitMiddleware         size and duration of a request's body
NormalizationMiddleware     HEAD as GET, forms in UTF-8
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from python_multipart.multipart import parse_options_header
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from songray.service.api_keys import is_key
from songray.service.audio import PATH as AUDIO_PATH
from songray.service.metrics import Metrics
from songray.service.problems import problem_response

PUBLIC_PATHS = ("/", "/healthz", "/readyz", "/openapi.json")  # that need no key
# Files of the page; routes that check keys, by OpenSubsonic's rules, or the signature of a link themselves.
PUBLIC_PREFIXES = ("/page/", "/rest/", AUDIO_PATH)
UPLOAD_PATH = "/v1/similar"
AUDIO_BYTES = 20 << 20
FORM_BYTES = 1 << 16  # overhead of a multipart form around a file
JSON_BYTES = 1 << 20
DRAIN_FACTOR = 4  # a body that is too large is read up to so many times its limit
BODY_SECONDS = 30.0  # after which a body must be complete
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the page has its own
    "Referrer-Policy": "no-referrer",  # queries may contain keys
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def middlewares(keys: frozenset[str], metrics: Metrics, access_log: str) -> list[Middleware]:
    """Without an access log, or without keys, the middleware for it is left out."""
    stack = [Middleware(MetricsMiddleware, metrics=metrics)]
    if access_log:
        stack.append(Middleware(AccessLogMiddleware, file=open_access_log(access_log)))
    if keys:
        stack.append(Middleware(AuthenticationMiddleware, backend=KeyBackend(keys), on_error=unauthorized))
    return [*stack, Middleware(BodyLimitMiddleware), Middleware(NormalizationMiddleware)]


class SecurityHeadersMiddleware:
    """Adds SECURITY_HEADERS to every response, but for those that it has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class StatusSend:
    """An ASGI `send` that records the status of the response; 500 where an exception prevents one."""

    def __init__(self, send: Send) -> None:
        self.send, self.status = send, 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.send(message)


class MetricsMiddleware:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, recorder = time.perf_counter(), StatusSend(send)
        self.metrics.underway.inc()
        try:
            await self.app(scope, receive, recorder)
        finally:
            self.metrics.underway.dec()
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "any"
            self.metrics.seconds.labels(method, route).observe(time.perf_counter() - started)
            self.metrics.requests.labels(method, route, recorder.status).inc()


class AccessLogMiddleware:
    """Writes no query strings, since they may contain keys."""

    def __init__(self, app: ASGIApp, file: TextIO) -> None:
        self.app, self.file = app, file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, recorder = time.perf_counter(), StatusSend(send)
        try:
            await self.app(scope, receive, recorder)
        finally:
            entry: dict[str, Any] = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "method": scope["method"],
                "path": scope["path"],
                "status": recorder.status,
                "milliseconds": round((time.perf_counter() - started) * 1000, 1),
            }
            self.file.write(json.dumps(entry) + "\n")


def open_access_log(path: str) -> TextIO:
    """A file to which several processes can append whole lines."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return io.TextIOWrapper(open(path, "ab", buffering=0), "utf-8", write_through=True)


class KeyBackend(AuthenticationBackend):
    """Requires `Authorization: Bearer <key>` with one of the keys, but for public paths."""

    def __init__(self, keys: frozenset[str]) -> None:
        self.keys = keys

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        path = conn.scope["path"]
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES):
            return None
        scheme, _, key = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_key(key.strip(), self.keys):
            return AuthCredentials(["key"]), SimpleUser("key")
        raise AuthenticationError("a valid key is needed: send Authorization: Bearer <key>")


def unauthorized(connection: HTTPConnection, error: AuthenticationError) -> Response:
    return problem_response(401, str(error), {"WWW-Authenticate": "Bearer"})


class BodyLimitMiddleware:
    """Limits the size of a request's body, and the time in which it arrives. Starlette's own middleware
    limits the size alone, and answers in plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            max_bytes = AUDIO_BYTES + FORM_BYTES if scope["path"] == UPLOAD_PATH else JSON_BYTES
            receive = LimitedReceive(receive, max_bytes)
        await self.app(scope, receive, send)


class LimitedReceive:
    """An ASGI `receive` that raises HTTPException where a body is too large (413) or too slow (408)."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive, self.max_bytes = receive, max_bytes
        self.size, self.is_complete = 0, False
        self.deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def __call__(self) -> Message:
        if self.is_complete:
            return await self.receive()
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self._next()
                # A client that is still sending does not read the response, so the rest is read first.
                while self.max_bytes < self.size < DRAIN_FACTOR * self.max_bytes and not self.is_complete:
                    message = await self._next()
        except TimeoutError as error:
            raise HTTPException(408, f"the body took longer than {BODY_SECONDS:g} s") from error
        if self.size > self.max_bytes:
            raise HTTPException(413, f"the body is larger than {self.max_bytes:,} bytes")
        return message

    async def _next(self) -> Message:
        message = await self.receive()
        self.size += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        return message


class NormalizationMiddleware:
    """Passes HEAD on as GET, since FastAPI's routes answer no HEAD; the server omits the body.

    The parameter charset of a form's Content-Type is dropped: Starlette would decode names by any codec of
    Python that it names, some of which raise or return what is no valid text. Forms are in UTF-8 (RFC 7578).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        normalized = {**scope, "headers": list(scope["headers"])}
        if scope["method"] == "HEAD":
            normalized["method"] = "GET"
        media_type, parameters = parse_options_header(Headers(scope=scope).get("content-type"))
        if media_type == b"multipart/form-data" and parameters.keys() >= {b"boundary", b"charset"}:
            boundary = re.sub(r'(["\\])', r"\\\1", parameters[b"boundary"].decode("latin-1"))
            MutableHeaders(scope=normalized)["content-type"] = f'multipart/form-data; boundary="{boundary}"'
        try:
            await self.app(normalized, receive, send)
        finally:
            scope["route"] = normalized.get("route")  # for the metrics
