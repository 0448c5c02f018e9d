"""The Ray Serve application: an ingress that answers, an encoder for sound, and slots for a large index.

serve build songray.service.app:build        what serve.yaml at the root of the repository is made with
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from songray.learning import runs
from songray.library import DEFAULT_LIBRARY, Library, Vectors
from songray.search.version import Index, Manifest
from songray.service import opensubsonic as subsonic
from songray.service.external import ExternalSources
from songray.service.middleware import Door, Metrics, keys_of_environment, opened_log
from songray.service.problems import RETRY_SECONDS, Refusal, documented, overloaded
from songray.service.routes import Live, Service, application
from songray.service.slots import LOST, Slot, Slots, Versions, asked, manifest_of
from songray.service.uploads import BATCH, Encoder, Heard

NAME = "songray"
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
LISTENING = {"max_ongoing_requests": 2 * BATCH, "max_queued_requests": 2 * BATCH}  # of up to 20 MB each
STATUS = {"not_audio": 415, "empty": 415, "too_long": 413}  # of what cannot be heard; all else is 422


@dataclass(frozen=True)
class IngressConfig:
    run: str = ""
    """Run whose index answers; may be left out where there is only one."""
    slots: int = 0
    """Processes over which the index is spread; 0: each process that answers holds it all."""
    slot_replicas: int = 1
    """Copies of each of them: with two, none is missed when one dies."""
    replicas: int = 1
    """Processes that answer, at least."""
    max_replicas: int = 1
    """At most: more are started while questions wait."""
    encoders: int = 1
    """Processes that embed the sound that listeners send; 0: none is taken."""
    max_ongoing: int = 64
    """Questions that one process answers at a time."""
    max_queued: int = 256
    """Questions that may wait for that; more are refused with 503 and Retry-After."""
    watch_seconds: float = 5.0
    """How often to look for a newer version of the index."""
    access_log: str = ""
    """File to which a line of JSON is added for each request."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other pages whose scripts may ask."""
    elsewhere: ExternalSources = field(default_factory=ExternalSources)

    def __post_init__(self) -> None:
        for name, least in (("slots", 0), ("slot_replicas", 1), ("replicas", 1), ("encoders", 0),
                            ("max_ongoing", 1), ("max_queued", 1), ("watch_seconds", 0.01),
                            ("max_replicas", self.replicas)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class ServeConfig:
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    version: str = ""
    """Version of the index that answers; by default always the newest, each as soon as it is there."""
    timeout_seconds: float = 60.0
    """Questions that take longer are given up."""
    ingress: IngressConfig = field(default_factory=IngressConfig)


class Ingress:
    """Deployment: what the application asks for."""

    def __init__(
        self,
        library: Library,
        config: IngressConfig,
        encoder: DeploymentHandle | None,
        slots: list[DeploymentHandle],
    ) -> None:
        self.library, self.config, self.encoder, self.slots = library, config, encoder, slots
        run = runs.choose(library, config.run).name
        self.versions = Versions(library, run, self._load, config.watch_seconds)

    async def reconfigure(self, config: dict[str, str]) -> None:
        await self.versions.follow(config["version"])

    def live(self) -> Live:
        current = self.versions.current
        return Slots(current, self.slots) if isinstance(current, Manifest) else current

    async def embed(self, audio: bytes) -> Vectors:
        if self.encoder is None:
            raise overloaded("this service takes no sound: it was started with --encoders 0")
        try:
            heard: Heard = await asked(self.encoder.hear, audio)
        except LOST as error:
            raise overloaded("nobody has time to listen now") from error
        return vector_of(heard)

    async def first(self, source: str, words: str) -> tuple[str, bytes]:
        return await self.config.elsewhere.first(source, words)

    async def _load(self, manifest: Manifest) -> Index | Manifest:
        """The index, or, where slots hold it, its manifest, once they hold it."""
        if not self.slots:
            return await asyncio.to_thread(Index.open, self.library, manifest)
        await asyncio.gather(*(asked(slot.ask, manifest.version, "find", []) for slot in self.slots))
        return manifest


def vector_of(heard: Heard) -> Vectors:
    """(dimension,); raises Refusal where there was nothing to hear."""
    if heard.vector is None:
        raise Refusal(STATUS.get(heard.error, 422), f"{heard.error}: {heard.detail}")
    return heard.vector


def build(arguments: dict[str, Any]) -> serve.Application:
    """For Ray Serve: `arguments` are `library`, `version` and those of IngressConfig."""
    options = dict(arguments)
    library, version = options.pop("library", DEFAULT_LIBRARY), options.pop("version", "")
    return bound(Library.open(library), TypeAdapter(IngressConfig).validate_python(options), version)


def __getattr__(name: str) -> serve.Application:
    """`built`: the application of the default library, for `serve build`, which calls no function."""
    if name == "built":
        return build({})
    raise AttributeError(name)


def bound(library: Library, config: IngressConfig, version: str) -> serve.Application:
    """The application; everything that follows the library's versions takes them as `user_config`."""
    quiet = {"backpressure_config": BackpressureConfig(retry_after_s=RETRY_SECONDS), "logging_config": QUIET}
    waiting = {"max_ongoing_requests": config.max_ongoing, "max_queued_requests": config.max_queued}
    versioned = {**quiet, **waiting, "user_config": {"version": version}}
    slots = [
        serve.deployment(Slot, name=f"slot-{number}", num_replicas=config.slot_replicas, **versioned).bind(
            library, config.run, number, config.slots, config.watch_seconds
        )
        for number in range(config.slots)
    ]
    encoder = (
        serve.deployment(Encoder, name="encoder", num_replicas=config.encoders, **quiet, **LISTENING).bind(
            library, config.run
        )
        if config.encoders
        else None
    )
    scaling = AutoscalingConfig(
        min_replicas=config.replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=config.max_ongoing / 4,
    )

    def api() -> FastAPI:
        return equipped(lambda: serve.get_replica_context().servable_object, config)

    ingress = serve.deployment(
        serve.ingress(api)(Ingress), name="ingress", autoscaling_config=scaling, **versioned
    )
    return ingress.bind(library, config, encoder, slots)


def equipped(service: Callable[[], Service], config: IngressConfig) -> FastAPI:
    """The application with all that is around it."""
    keys, measures = keys_of_environment(), Metrics()
    api = application(service)
    api.include_router(subsonic.router(lambda: service().live(), keys))

    @api.get("/metrics", tags=["operation"], response_class=Response, responses=documented())
    async def metrics() -> Response:
        """Counts and times of this process, for Prometheus."""
        return Response(measures.page(service().live().manifest), media_type=CONTENT_TYPE_LATEST)

    api.add_middleware(Door, keys=keys, measures=measures, log=opened_log(config.access_log))
    if config.cors_origins:
        api.add_middleware(
            CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return api


@contextmanager
def served(library: Library, config: ServeConfig) -> Iterator[str]:
    """The service, up within the context; gives its address. Ray must be connected."""
    manifest_of(library, runs.choose(library, config.ingress.run).name, config.version)
    check_port(config.host, config.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    where = {"host": config.host, "port": config.port, "location": "HeadOnly"}
    serve.start(http_options={**where, "request_timeout_s": config.timeout_seconds}, logging_config=QUIET)
    try:
        deploy(library, config)
        yield f"http://{config.host}:{config.port}"
    finally:
        serve.shutdown()


def deploy(library: Library, config: ServeConfig) -> None:
    """Bring the application up, or, where it runs, to these settings: to another version without a pause."""
    serve.run(bound(library, config.ingress, config.version), name=NAME)


def check_port(host: str, port: int) -> None:
    """Raise ValueError where something else listens already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port {port} on {host} cannot be had ({error.strerror}): choose another"
            ) from error


def serve_forever(library: Library, config: ServeConfig) -> None:
    """Serve in the foreground until the process is told to stop. Where the cluster serves already, bring that
    to these settings, and return."""
    if NAME in serve.status().applications:
        deploy(library, config)
        print(f"the service that runs answers from {config.version or 'the newest version'} now", flush=True)
        return
    with served(library, config) as address:
        wait_for_end(address)


def wait_for_end(address: str) -> None:
    """Say where the service is, and wait for Ctrl-C or SIGTERM."""
    print(f"serving {address} (the page) and {address}/docs (the API); Ctrl-C ends it", flush=True)
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    ended.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
