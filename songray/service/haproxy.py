"""The environment in which Ray Serve puts HAProxy, in place of its own proxy, before the ingress."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "admin.sock",
    "SERVER_STATE_BASE": "",
    "SERVER_STATE_FILE": "server-state",
}
# What RAY_SERVE_THROUGHPUT_OPTIMIZED=1 sets, but for the lines that the controller then prints.
THROUGHPUT_OPTIMIZED = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_PROXY_USE_GRPC": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}


@contextmanager
def haproxy_environment() -> Iterator[dict[str, str]]:
    """Variables that Ray must have when it starts, for HAProxy to stand before the service.

    HAProxy accepts several times as many requests a second as Ray's own proxy. It gets a folder and ports of
    its own, so that several services can run on one machine; the folder exists within the context.
    """
    with tempfile.TemporaryDirectory(prefix="songray-haproxy-", ignore_cleanup_errors=True) as folder:
        settings = {name: os.path.join(folder, file) for name, file in FILES.items()}
        with socket.create_server(("", 0)) as metrics, socket.create_server(("", 0)) as stats:
            settings["METRICS_PORT"] = str(metrics.getsockname()[1])
            settings["STATS_PORT"] = str(stats.getsockname()[1])
        # HAProxy logs whole queries, which may contain keys: no syslog, and no lines for Ray's own metrics.
        settings |= {"LOG_TARGET": "/dev/null", "METRICS_ENABLED": "0"}
        # All requests are reads, so a request whose replica dies can be sent to another one.
        settings["RETRY_ON"] = "conn-failure empty-response"
        yield {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            **THROUGHPUT_OPTIMIZED,
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # the default, 30, delays the shutdown
            **{f"RAY_SERVE_HAPROXY_{name}": value for name, value in settings.items()},
        }
