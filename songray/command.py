"""What every job shares: its flags, a Ray to run on, and errors told in a sentence."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Annotated

import ray
import ray.data
import tyro

from songray.library import DEFAULT_LIBRARY, Library

LOCAL_LOGICAL_CPUS = 4  # on fewer, pipelines of several actor pools wait for each other forever

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints each line of a worker twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # for 2 s: at each, it takes the report of one epoch
}
QUIET = ray.LoggingConfig(log_level="ERROR")  # workers say what went wrong, and what they print

LibraryFlag = Annotated[
    str, tyro.conf.arg(name="library", help="Folder or URI (s3://…, gs://…) of the library.")
]


def run(main: Callable[..., None] | dict[str, Callable[..., None]], description: str | None) -> None:
    """Parse the flags of a job, or of its subcommands, and call it; exit with 1 and a sentence when it
    refuses (ValueError) or has failed too often (RuntimeError)."""
    settings = (tyro.conf.OmitArgPrefixes,)
    try:
        if callable(main):
            tyro.cli(main, description=description, config=settings)
        else:
            tyro.extras.subcommand_cli_from_dict(main, description=description, config=settings)
    except (ValueError, RuntimeError) as error:
        print(f"error: {_told(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def described(main: Callable[..., None], by: type) -> Callable[..., None]:
    """A subcommand whose line in --help is the first one of the module of what it is about."""
    main.__doc__ = (sys.modules[by.__module__].__doc__ or "").splitlines()[0]
    return main


def _told(error: BaseException) -> str:
    """The sentence of an error, without the trace that Ray puts around one from a worker."""
    cause = getattr(error, "cause", None)
    return str(cause) if cause is not None else str(error)


def open_library(location: str = DEFAULT_LIBRARY) -> Library:
    """The library, with Ray connected to work on it."""
    library = Library.open(location)
    connect()
    return library


def proxy() -> dict[str, str]:
    """What has Ray Serve put HAProxy before what answers, which takes several times as many questions as
    Ray's own proxy; with files and ports of its own, so that several may run on a machine."""
    folder = tempfile.mkdtemp(prefix="songray-haproxy-")
    files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_BASE": "",
             "SERVER_STATE_FILE": "server-state"}  # fmt: skip
    with socket.create_server(("", 0)) as metrics, socket.create_server(("", 0)) as stats:
        ports = {"METRICS_PORT": metrics.getsockname()[1], "STATS_PORT": stats.getsockname()[1]}
    own = {name: os.path.join(folder, file) for name, file in files.items()} | ports
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # No question changes anything: where a process dies over one, another answers it.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # else it takes 30 s to end
        **{f"RAY_SERVE_HAPROXY_{name}": str(value) for name, value in own.items()},
    }


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names; without one, start a Ray of this process's own."""
    if ray.is_initialized():
        return
    for name, value in {**ENVIRONMENT, **proxy()}.items():
        os.environ.setdefault(name, value)
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, logging_level=logging.WARNING, logging_config=QUIET)
    else:
        cpus = max(LOCAL_LOGICAL_CPUS, os.cpu_count() or 1)
        ray.init(
            "local", num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR, logging_config=QUIET
        )
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False  # stages tell their progress in tracks
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # there may be little to do
