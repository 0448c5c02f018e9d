"""Servers on 127.0.0.1 that respond like services on the web, in their documented formats, failures included.

Each is an aiohttp application: a test serves it from a thread, a benchmark from a process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

from aiohttp import web


@contextmanager
def served(application: web.Application, port: int = 0) -> Iterator[str]:
    """Serve an application from a thread within the context; yields its URL."""
    addresses: Queue[int] = Queue()
    ended = threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        addresses.put(runner.addresses[0][1])
        await asyncio.to_thread(ended.wait)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{addresses.get(timeout=10)}"
    finally:
        ended.set()
        thread.join()
