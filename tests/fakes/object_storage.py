"""An S3 server on 127.0.0.1 (moto), behind a proxy that can fail and delay requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import aiohttp
import pyarrow.fs
from aiohttp import web
from moto.server import ThreadedMotoServer

from songray.library import Library

Fault = Callable[[str, str], int | float | None]
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "expect", "server", "date"}


class ObjectStorage:
    """`fault` decides about every request by its method and path. An integer is the status of an answer, and
    the server never gets the request; a float, the seconds by which the request is delayed."""

    def __init__(self, server: str) -> None:
        self.server, self.fault = server, _none
        self.requests: list[str] = []
        self.listening = Event()
        self.thread = Thread(target=lambda: asyncio.run(self.serve()))
        self.thread.start()
        self.listening.wait()

    async def serve(self) -> None:
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self.forward)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = int(runner.addresses[0][1])
        async with aiohttp.ClientSession(auto_decompress=False) as self.session:
            self.listening.set()
            await self.stopped.wait()
            await runner.cleanup()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join()

    async def forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(f"{request.method} {request.path}")
        fault = self.fault(request.method, request.path_qs)
        if isinstance(fault, int):
            return web.Response(status=fault)
        await asyncio.sleep(fault or 0)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = f"{self.server}{request.raw_path}"
        async with self.session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    def library(self, bucket: str) -> Library:
        """A library in a new bucket, opened as a job opens it."""
        filesystem = pyarrow.fs.S3FileSystem(
            access_key="access",
            secret_key="secret",
            endpoint_override=f"127.0.0.1:{self.port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        filesystem.create_dir(bucket)
        return Library.open(self.uri(bucket))

    def uri(self, bucket: str) -> str:
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://access:secret@{bucket}/library?{options}"


def _none(method: str, path: str) -> None:
    return None


@contextmanager
def object_storage() -> Iterator[ObjectStorage]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage = ObjectStorage(f"http://{host}:{port}")
    try:
        yield storage
    finally:
        storage.stop()
        server.stop()
