"""A host of previews, some of which fail: /<behaviour>/<name>, see PreviewHost.behaviours.

python -m fakes.previews --port 8140 --latency 0.05 --size 400000
"""

from __future__ import annotations

import argparse
import asyncio
import io
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import soundfile
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_COUNTS = web.AppKey("request_counts", Counter[str])  # by path


def sound(size: int, seed: int = 0) -> bytes:
    """A WAV file of noise with `size` bytes, different for each seed."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(-3000, 3000, (size - 44) // 2, dtype=np.int16)
    soundfile.write(file, noise, 22050, format="WAV", subtype="PCM_16")
    return file.getvalue()


def application(size: int = 20_000, latency_seconds: float = 0.0, same: bool = False) -> web.Application:
    """`same` sends one sound under all names, which saves generating them."""
    return PreviewHost(size, latency_seconds, same).application()


class PreviewHost:
    def __init__(self, size: int, latency_seconds: float, same: bool) -> None:
        self.size, self.latency_seconds, self.same = size, latency_seconds, same
        self.body = sound(size)
        self.request_counts: Counter[str] = Counter()
        self.responses: list[tuple[str, float]] = []  # path and time
        self.behaviours: dict[str, Handler] = {
            "good": self._good,
            "missing": _status(404),
            "gone": _status(410),
            "expired": _status(403),
            "busy": self._once(_status(429, Retry_After="1")),
            "broken": _status(500),
            "flaky": self._once(_status(503)),
            "reset": _reset,
            "resetonce": self._once(_reset),
            "truncated": self._truncated,
            "wronglength": self._wrong_length,
            "drip": self._drip,
            "silent": _silent,
            "empty": _status(200),
            "html": _html,
            "loop": _loop,
            "moved": _moved,
            "huge": _huge,
        }

    def application(self) -> web.Application:
        app = web.Application()
        app[REQUEST_COUNTS] = self.request_counts
        app.router.add_get("/_answered", self._take_responses)
        app.router.add_get("/{behaviour}/{name}", self._respond)
        return app

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        self.request_counts[request.path] += 1
        await asyncio.sleep(self.latency_seconds)
        self.responses.append((request.path, time.time()))
        return await self.behaviours[request.match_info["behaviour"]](request)

    async def _take_responses(self, request: web.Request) -> web.StreamResponse:
        """The responses since the last call, for a benchmark in another process."""
        taken = web.json_response(self.responses)
        self.responses.clear()
        return taken

    async def _good(self, request: web.Request) -> web.StreamResponse:
        body = self.body if self.same else sound(self.size, hash(request.match_info["name"]) % 2**32)
        return web.Response(body=body, content_type="audio/mpeg")

    def _once(self, first: Handler) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            is_first = self.request_counts[request.path] == 1
            return await (first if is_first else self._good)(request)

        return respond

    async def _truncated(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(self.size)})
        await response.prepare(request)
        await response.write(self.body[: self.size // 2])
        assert request.transport
        request.transport.close()
        return response

    async def _wrong_length(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.body, headers={"Content-Length": str(self.size * 2)})

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(self.size)})
        await response.prepare(request)
        for number in range(self.size):
            await response.write(self.body[number : number + 1])
            await asyncio.sleep(0.2)
        return response


def _status(number: int, **headers: str) -> Handler:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.Response(status=number, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return respond


async def _reset(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


async def _silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def _html(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Sign in</html>" * 50, content_type="audio/mpeg")


async def _loop(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(request.path)


async def _moved(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(f"/good/{request.match_info['name']}")


async def _huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(50):
        await response.write(bytes(1_000_000))
    return response


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=400_000)
    options = parser.parse_args()
    app = application(options.size, options.latency, same=True)
    web.run_app(app, host="127.0.0.1", port=options.port, access_log=None, print=None)
