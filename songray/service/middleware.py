"""Around the application: who may come in, with how much and for how long, and what is noted of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from songray.search.version import Manifest
from songray.service import problems
from songray.service.opensubsonic import matches

KEYS = "SONGRAY_KEYS"
OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")  # to everybody
SUBSONIC = "/rest/"  # where keys are checked in its own way
AUDIO_BYTES = 20 << 20
FORM_BYTES = 1 << 16  # that a form adds to a file
JSON_BYTES = 1 << 20
DRAINED = 4  # times what is allowed, that are read of a body before its connection is cut
BODY_SECONDS = 30.0  # in which a request must have come in
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


def keys_of_environment() -> frozenset[str]:
    """The keys that open the service, from the environment, with commas between them; none: it is open."""
    keys = frozenset(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    if not all(key.isascii() for key in keys):  # a header could not carry it
        raise ValueError(f"{KEYS} holds a key with letters beyond ASCII: choose another")
    return keys


class Metrics:
    """What Prometheus may know of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "songray_request_seconds", "Time to answer.", ["method", "route"],
            registry=self.registry, buckets=SECONDS,
        )  # fmt: skip
        self.requests = Counter(
            "songray_requests", "Requests by status.", ["method", "route", "status"], registry=self.registry
        )
        self.underway = Gauge("songray_requests_underway", "Being answered now.", registry=self.registry)
        about = ("run", "version")
        self.tracks = Gauge(
            "songray_index_tracks", "Tracks of the index that answers.", about, registry=self.registry
        )
        self.recall = Gauge(
            "songray_index_recall", "Its recall at 10, measured on a sample.", about, registry=self.registry
        )

    def page(self, manifest: Manifest) -> bytes:
        for gauge, value in ((self.tracks, manifest.tracks), (self.recall, manifest.recall)):
            gauge.clear()
            gauge.labels(manifest.run, manifest.version).set(value)
        return generate_latest(self.registry)


class Door:
    """Middleware, around all else but CORS."""

    def __init__(
        self, app: ASGIApp, keys: frozenset[str], measures: Metrics, log: TextIO | None = None
    ) -> None:
        self.app, self.keys, self.measures, self.log = app, keys, measures, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.measures.underway.inc()
        try:
            if refusal := self._refusal(scope):
                await refusal(scope, receive, noting)
            else:
                await self.app(scope, self._bounded(scope, receive), noting)
        finally:
            self.measures.underway.dec()
            self._note(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        if not self.keys or path in OPEN or path.startswith(SUBSONIC):
            return None
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and matches(key.strip(), self.keys):
            return None
        detail = "a key is needed, and no such key is known: send Authorization: Bearer <key>"
        return problems.answer(401, detail, {"WWW-Authenticate": "Bearer"})

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, while a body comes in: no more of it, and no longer, than is allowed."""
        if scope["method"] in ("GET", "HEAD"):
            return receive
        most, size, coming = _most_bytes(scope["path"]), 0, True
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def bounded() -> Message:
            nonlocal size, coming
            if not coming:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
                    size += len(message.get("body", b""))
                    while most < size < DRAINED * most and message.get("more_body"):
                        message = await receive()  # who is still sending does not hear an answer
                        size += len(message.get("body", b""))
            except TimeoutError as error:
                raise HTTPException(408, f"the body took longer than {BODY_SECONDS:g} s") from error
            coming = message.get("more_body", False)
            if size > most:
                raise HTTPException(413, f"the body is larger than {most:,} bytes")
            return message

        return bounded

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if route != "none" else "any"
        self.measures.seconds.labels(method, route).observe(seconds)
        self.measures.requests.labels(method, route, status).inc()
        if self.log:
            note: dict[str, Any] = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "method": scope["method"],
                "path": scope["path"],  # less its query, in which there may be keys
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
            }
            self.log.write(json.dumps(note) + "\n")


def opened_log(path: str) -> TextIO | None:
    """A file to which whole lines are added, by several processes as may be."""
    if not path:
        return None
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return io.TextIOWrapper(open(path, "ab", buffering=0), "utf-8", write_through=True)


def _most_bytes(path: str) -> int:
    return AUDIO_BYTES + FORM_BYTES if path == "/v1/similar" else JSON_BYTES
