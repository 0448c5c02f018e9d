"""Failures with which any fake service can respond, by path, and the record of its requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SLOW_SECONDS = 60.0


class Faults:
    """`queues` names the faults before the usual responses: {"/artist/1/top": ["500", "reset"]} fails twice.

    Further kinds of faults are keyword arguments, or added to `handlers`.
    """

    def __init__(self, **more: Handler) -> None:
        self.queues: dict[str, list[str]] = {}
        self.requests: list[tuple[float, str]] = []  # (time.time(), path and query)
        self.handlers: dict[str, Handler] = FAULTS | more

    @property
    def paths(self) -> list[str]:
        return [path for _, path in self.requests]

    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        @web.middleware
        async def fail_first(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path == "/_requests":  # for a benchmark, from another process
                return web.json_response(self.requests)
            self.requests.append((time.time(), request.path_qs))
            if queue := self.queues.get(request.path):
                return await self.handlers[queue.pop(0)](request)
            return await handler(request)

        return fail_first


async def _status(request: web.Request, status: int, **headers: str) -> web.StreamResponse:
    return web.Response(status=status, headers=headers, text="no")


async def _reset(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


async def _slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(SLOW_SECONDS)
    return web.Response()


async def _malformed(request: web.Request) -> web.StreamResponse:
    return web.Response(text='{"data": [{"id": 1, "ti', content_type="application/json")


async def _cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"data": [')
    return await _reset(request)


async def _html(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>maintenance</html>", content_type="text/html")


FAULTS: dict[str, Handler] = {
    "403": lambda request: _status(request, 403),
    "404": lambda request: _status(request, 404),
    "429": lambda request: _status(request, 429),
    "429, a moment": lambda request: _status(request, 429, **{"Retry-After": "0.2"}),
    "429, a day": lambda request: _status(request, 429, **{"Retry-After": "86400"}),
    "500": lambda request: _status(request, 500),
    "reset": _reset,
    "slow": _slow,
    "malformed": _malformed,
    "cut": _cut,
    "html": _html,
}
