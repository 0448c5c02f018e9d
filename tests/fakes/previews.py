"""A host of previews, some of which fail: /<behaviour>/<name>, see `behaviours`.

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
ASKED = REQUEST_COUNTS


def sound(size: int, seed: int = 0) -> bytes:
    """A WAV file of noise with `size` bytes, different for each seed."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(-3000, 3000, (size - 44) // 2, dtype=np.int16)
    soundfile.write(file, noise, 22050, format="WAV", subtype="PCM_16")
    return file.getvalue()


def application(size: int = 20_000, latency_seconds: float = 0.0, same: bool = False) -> web.Application:
    """`same` sends one sound under all names, which saves generating them."""
    app = web.Application()
    app[REQUEST_COUNTS] = Counter()
    body = sound(size)

    def sound_of(request: web.Request) -> bytes:
        return body if same else sound(size, hash(request.match_info["name"]) % 2**32)

    async def good(request: web.Request) -> web.StreamResponse:
        return web.Response(body=sound_of(request), content_type="audio/mpeg")

    def status(number: int, **headers: str) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            return web.Response(status=number, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return respond

    def once(first: Handler) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            return await (first if app[REQUEST_COUNTS][request.path] == 1 else good)(request)

        return respond

    async def reset(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.abort()
        return web.Response()

    async def truncated(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        await response.write(body[: size // 2])
        assert request.transport
        request.transport.close()
        return response

    async def wrong_length(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Length": str(size * 2)})

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        for number in range(size):
            await response.write(body[number : number + 1])
            await asyncio.sleep(0.2)
        return response

    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        return web.Response()

    async def html(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>Sign in</html>" * 50, content_type="audio/mpeg")

    async def loop(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(request.path)

    async def moved(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"/good/{request.match_info['name']}")

    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(50):
            await response.write(bytes(1_000_000))
        return response

    behaviours: dict[str, Handler] = {
        "good": good,
        "missing": status(404),
        "gone": status(410),
        "expired": status(403),
        "busy": once(status(429, Retry_After="1")),
        "broken": status(500),
        "flaky": once(status(503)),
        "reset": reset,
        "resetonce": once(reset),
        "truncated": truncated,
        "wronglength": wrong_length,
        "drip": drip,
        "silent": silent,
        "empty": status(200),
        "html": html,
        "loop": loop,
        "moved": moved,
        "huge": huge,
    }

    responses: list[tuple[str, float]] = []  # path and time

    async def respond(request: web.Request) -> web.StreamResponse:
        app[REQUEST_COUNTS][request.path] += 1
        await asyncio.sleep(latency_seconds)
        responses.append((request.path, time.time()))
        return await behaviours[request.match_info["behaviour"]](request)

    async def take_responses(request: web.Request) -> web.StreamResponse:
        """The responses since the last call, for a benchmark in another process."""
        taken = web.json_response(responses)
        responses.clear()
        return taken

    app.router.add_get("/_answered", take_responses)
    app.router.add_get("/{behaviour}/{name}", respond)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=400_000)
    options = parser.parse_args()
    app = application(options.size, options.latency, same=True)
    web.run_app(app, host="127.0.0.1", port=options.port, access_log=None, print=None)
