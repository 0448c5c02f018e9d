"""The options of the service; importable without Ray and FastAPI."""

from __future__ import annotations

from dataclasses import dataclass, field

from songray.catalogue.sources.registry import AudioServices
from songray.errors import InvalidOption

UPLOAD_BATCH = 16  # uploads that are encoded together


@dataclass(frozen=True)
class IngressConfig:
    run: str = ""
    """Run whose index is served; may be omitted where there is only one."""
    runs: tuple[str, ...] = ()
    """Two runs that listeners compare on the page, in place of --run: the first one is served. Each replica
    holds the indexes of both."""
    slots: int = 0
    """Processes over which the shards of the index are spread; 0: each ingress replica holds the whole
    index."""
    slot_replicas: int = 1
    """Replicas of each slot; with 2, results stay complete when a replica dies."""
    replicas: int = 1
    """Minimum number of ingress replicas."""
    max_replicas: int = 1
    """Maximum number of ingress replicas; more are started while requests are queued."""
    encoders: int = 1
    """Replicas that embed uploaded audio; 0: uploads are rejected."""
    replica_cpus: float = 1.0
    """Logical CPUs that Ray reserves for each replica; 0 leaves all of them to batch jobs."""
    max_ongoing: int = 64
    """Requests that one ingress replica executes at a time."""
    max_queued: int = 256
    """Requests that may be queued; further ones are rejected with 503 and Retry-After."""
    watch_seconds: float = 5.0
    """Interval of the checks for a newer version of the index."""
    access_log: str = ""
    """File to which one line of JSON is appended for each request."""
    export_paths: bool | None = None
    """Whether exported playlists name files of a folder by their paths, for players on this machine, in place
    of links to the service. By default they do where other machines cannot reach it and it needs no key."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other web pages whose scripts may send requests (CORS)."""
    external: AudioServices = field(default_factory=AudioServices)

    def __post_init__(self) -> None:
        minima = {
            "slots": 0,
            "slot_replicas": 1,
            "replicas": 1,
            "max_replicas": self.replicas,
            "encoders": 0,
            "replica_cpus": 0,
            "max_ongoing": 1,
            "max_queued": 1,
            "watch_seconds": 0.01,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise InvalidOption(f"{name} is {getattr(self, name)}: must be at least {minimum}")
        if self.runs and (len(set(self.runs)) != 2 or self.run):
            named = " ".join(self.runs)
            raise InvalidOption(f"--runs {named}: name two runs to compare, as A B, and no --run")

    @property
    def served(self) -> tuple[str, str]:
        """The run that is served, and the one that is compared with it; "" where none is named."""
        return self.runs[:2] if self.runs else (self.run, "")  # type: ignore[return-value]


@dataclass(frozen=True)
class ServeConfig:
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    version: str = ""
    """Version of the index that is served; by default the newest, with each new one as soon as it is
    published."""
    timeout_seconds: float = 60.0
    """Seconds after which a request is cancelled."""
    open: bool = False
    """Where SONGRAY_KEYS lists no keys, answer requests of other machines without one; otherwise the service
    does not start where they can reach it."""
    ingress: IngressConfig = field(default_factory=IngressConfig)
