"""The Ray Serve application: builds it, deploys it, and serves it in the foreground."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import TypeAdapter
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from songray.errors import InvalidOption
from songray.learning import runs
from songray.library import DEFAULT_LIBRARY, Library
from songray.search.version import stored_bytes
from songray.service.api import create_api
from songray.service.api_keys import VARIABLE, ApiKeys, environment_keys, is_loopback, keys_for
from songray.service.ingress import Ingress
from songray.service.options import UPLOAD_BATCH, IngressConfig, ServeConfig
from songray.service.problems import RETRY_AFTER_SECONDS
from songray.service.slots import Slot
from songray.service.snapshots import find_version

NAME = "songray"
CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # of Ray Serve, in the namespace serve
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
COMMON = {
    "backpressure_config": BackpressureConfig(retry_after_s=RETRY_AFTER_SECONDS),
    "logging_config": QUIET,
}
MAX_UPLOADS = 2 * UPLOAD_BATCH  # of up to 20 MB each
SHUTDOWN_SECONDS = 30.0


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application builder that serve.yaml names. `arguments` are `library`, `version`, `open` and the
    fields of IngressConfig. The keys are those in the environment of the node that it runs on. Raises
    InvalidOption where there are none, unless `open` is true."""
    options = dict(arguments)
    library, version = options.pop("library", DEFAULT_LIBRARY), options.pop("version", "")
    is_open, keys = options.pop("open", False), environment_keys()
    if not (keys or is_open):
        raise InvalidOption(
            f"{VARIABLE} lists no keys: set it in the environment of `ray start` on each node, "
            "or state `open: true` among the arguments to answer requests without a key"
        )
    return bind(Library.open(library), TypeAdapter(IngressConfig).validate_python(options), version, keys)


def __getattr__(name: str) -> serve.Application:
    """`built` is the application of the default library: `serve build songray.service.app:built` needs an
    object and calls no builder, while an ordinary global would open that library at every import."""
    if name == "built":
        return build({})
    raise AttributeError(name)


def bind(library: Library, config: IngressConfig, version: str, keys: ApiKeys) -> serve.Application:
    """The application. The run and the version are the `user_config` of its deployments: a change of them
    restarts no replica."""
    limits = {"max_ongoing_requests": config.max_ongoing, "max_queued_requests": config.max_queued}
    run, compared = config.served
    served, config = {"run": run, "version": version, "compared": compared}, replace(config, run="", runs=())
    reserved = {"ray_actor_options": {"num_cpus": config.replica_cpus}}
    options = {**COMMON, **limits, **reserved, "user_config": served}
    slots = [
        serve.deployment(Slot, name=f"slot-{number}", num_replicas=config.slot_replicas, **options).bind(
            library, number, config.slots, config.watch_seconds
        )
        for number in range(config.slots)
    ]
    scaling = AutoscalingConfig(
        min_replicas=config.replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=config.max_ongoing / 4,
    )

    def api() -> FastAPI:
        return create_api(lambda: serve.get_replica_context().servable_object, config, keys)

    ingress = serve.deployment(
        serve.ingress(api)(Ingress), name="ingress", autoscaling_config=scaling, **options
    )
    encoder = _bind_encoder(library, config.encoders, options) if config.encoders else None
    return ingress.bind(library, config, encoder, slots)


def _bind_encoder(library: Library, replicas: int, options: dict[str, Any]) -> serve.Application:
    from songray.service.uploads import UploadEncoder  # loads torch, which nothing else needs

    options = {**options, "max_ongoing_requests": MAX_UPLOADS, "max_queued_requests": MAX_UPLOADS}
    return serve.deployment(UploadEncoder, name="encoder", num_replicas=replicas, **options).bind(library)


@contextmanager
def served(library: Library, config: ServeConfig) -> Iterator[str]:
    """Serve within the context, which is the URL of the service. Ray must be connected."""
    keys_for(config.host, config.open)
    check_index(library, config)
    check_port(config.host, config.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {"host": config.host, "port": config.port, "location": "HeadOnly"}
    serve.start(http_options={**http, "request_timeout_s": config.timeout_seconds}, logging_config=QUIET)
    try:
        deploy(library, config)
        yield f"http://{config.host}:{config.port}"
    finally:
        shut_down()


def deploy(library: Library, config: ServeConfig) -> None:
    """Start the application, or, where it runs, change it to these settings; a change of the run or the
    version interrupts no request. A Serve that runs already keeps the host that it listens on. Raises
    MissingInput or InvalidOption where there is no such index."""
    check_index(library, config)
    controller = ray.get_actor(CONTROLLER, namespace="serve")
    host = ray.get(controller.get_http_config.remote()).host
    keys, ingress = keys_for(host, config.open), config.ingress
    if ingress.export_paths is None:
        ingress = replace(ingress, export_paths=is_loopback(host) and not keys)
    serve.run(bind(library, ingress, config.version, keys), name=NAME)


def shut_down() -> None:
    """Shut down Ray Serve without the error that `serve.shutdown` prints.

    Serve's controller kills itself to end the call that waits for it. `serve.shutdown` makes that call with
    infinite retries, so that Ray prints "Task ServeController.graceful_shutdown failed"; this function makes
    it without any.
    """
    with suppress(ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        controller = ray.get_actor(CONTROLLER, namespace="serve")
        shutdown = controller.graceful_shutdown.options(max_task_retries=0)
        ray.get(shutdown.remote(), timeout=SHUTDOWN_SECONDS)
    serve.shutdown()  # drops this process's client; shuts down where the call above could not


def check_index(library: Library, config: ServeConfig) -> None:
    """Raise MissingInput or InvalidOption where an index that the options name does not exist."""
    run, compared = config.ingress.served
    find_version(library, runs.choose(library, run).name, config.version)
    if compared:
        find_version(library, runs.choose(library, compared).name)


def check_port(host: str, port: int) -> None:
    """Raise InvalidOption where the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidOption(
                f"--port {port} on {host} cannot be used ({error.strerror}): choose another one"
            ) from error


def serve_forever(library: Library, config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM. Where the cluster serves already, change that service to these settings
    and return."""
    if NAME in serve.status().applications:
        deploy(library, config)
        version = config.version or "the newest version"
        run = config.ingress.served[0] or "its run"
        print(f"the running service now serves {version} of {run}", flush=True)
        return
    for run in config.ingress.runs:
        megabytes = stored_bytes(library, find_version(library, run)) / 1e6
        print(f"serve: the index of {run} takes {megabytes:,.1f} MB in each replica", flush=True)
    with served(library, config) as address:
        wait_for_end(address)


def wait_for_end(address: str) -> None:
    """Print the address of the service, and wait for SIGINT (Ctrl-C) or SIGTERM."""
    print(f"serving {address} (the page) and {address}/openapi.json (the API); Ctrl-C ends it", flush=True)
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    ended.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
