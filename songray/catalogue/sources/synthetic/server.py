"""Serves the audio of the synthetic catalogue over HTTP, rendered on request."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Response

from songray.catalogue.sources.synthetic import synthesis
from songray.catalogue.sources.synthetic.songs import song_of
from songray.catalogue.sources.synthetic.source import HOST, SyntheticSource
from songray.errors import FetchError, InvalidOption

SERVER_PROCESSES = 2
OPTIONS_VARIABLE = "SONGRAY_SYNTHETIC_SOURCE"  # passes the options to the server's processes


def serve_forever(source: SyntheticSource) -> None:
    """Serve the audio in the foreground until interrupted. Raises InvalidOption where the port is in use."""
    _require_free_port(source.audio_port)
    os.environ[OPTIONS_VARIABLE] = json.dumps(asdict(source))
    uvicorn.run(
        "songray.catalogue.sources.synthetic.server:application",
        factory=True,
        host=HOST,
        port=source.audio_port,
        workers=SERVER_PROCESSES,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


@contextmanager
def served(source: SyntheticSource, deadline_seconds: float = 30) -> Iterator[str]:
    """Serve the audio from child processes within the context; yields the base URL.

    Raises InvalidOption where the port is in use, FetchError where the server does not start in time.
    """
    _require_free_port(source.audio_port)
    server = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve_for; serve_for({os.getpid()})"],
        env={
            **os.environ,
            OPTIONS_VARIABLE: json.dumps(asdict(source)),
            "PYTHONPATH": os.pathsep.join(sys.path),  # it imports what this process can
        },
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the server
    )
    try:
        base_url = f"http://{HOST}:{source.audio_port}"
        _wait_until_ready(server, base_url, deadline_seconds)
        yield base_url
    finally:
        _end(server)


def serve_for(parent: int) -> None:
    """Serve the audio until the process `parent` ends: the entry point of the child process of `served`."""
    _end_with(parent)
    serve_forever(_options_from_environment())


def application() -> FastAPI:
    """The web application of one process of the server."""
    _end_with(os.getppid())
    source = _options_from_environment()
    app = FastAPI(openapi_url=None)

    @app.api_route("/{seed}/{number}.mp3", methods=["GET", "HEAD"])
    async def audio(seed: int, number: int) -> Response:
        if seed != source.seed or not 0 <= number < source.songs:
            raise HTTPException(404, f"no song {number} among {source.songs} with the seed {source.seed}")
        # Rendering blocks this process on purpose, and the connection closes after the response: so the next
        # request goes to an idle process.
        rendered = synthesis.render(seed, song_of(seed, number))
        return Response(rendered, media_type="audio/mpeg", headers={"Connection": "close"})

    return app


def _options_from_environment() -> SyntheticSource:
    return SyntheticSource(**json.loads(os.environ[OPTIONS_VARIABLE]))


def _require_free_port(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise InvalidOption(f"--audio-port {port}: in use on {HOST}: name another port") from error


def _wait_until_ready(server: subprocess.Popen[bytes], base_url: str, deadline_seconds: float) -> None:
    deadline = time.monotonic() + deadline_seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise FetchError("connection", f"the server of synthetic audio at {base_url} ended: see above")
        try:
            httpx.get(base_url, timeout=1)  # any response will do, also 404
            return
        except httpx.TransportError:
            time.sleep(0.05)
    detail = f"the server of synthetic audio at {base_url} did not respond within {deadline_seconds} s"
    raise FetchError("timeout", detail)


def _end(server: subprocess.Popen[bytes], grace_seconds: float = 5) -> None:
    """Terminate the server, which ends its workers; kill all processes that remain."""
    server.terminate()
    try:
        server.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # it leads its own process group
        server.wait()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended: a killed parent cannot end its children."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
