"""The polite client under every service on the web: limits that the whole cluster shares, patience, and
failures told as data."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TypeVar

import aiohttp
import ray
import tenacity
from aiolimiter import AsyncLimiter

from songray.errors import FetchError

USER_AGENT = "songray (https://pypi.org/project/songray)"
PASSING_STATUSES = frozenset({408, 425, 429})  # and all of 500…599
NAMESPACE = "songray"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limit:
    """At most `requests` in any `seconds`, of all workers together."""

    requests: int
    seconds: float
    longest_wait_seconds: float = 120.0  # a service that asks for a longer silence is reported instead

    def __post_init__(self) -> None:
        for name in ("requests", "seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} of a rate limit is {getattr(self, name)}: must be above 0")

    @classmethod
    def at(cls, requests_per_second: float, window_seconds: float) -> Limit:
        """The limit of a service that counts requests in windows of so many seconds."""
        requests = max(1, round(requests_per_second * window_seconds))
        return cls(requests, requests / requests_per_second)

    def limiter(self) -> AsyncLimiter:
        """A leaky bucket lets its size pass at once and then drips: both together stay within the limit."""
        burst = max(1, self.requests // 10)
        rate = max(1, self.requests - burst) / self.seconds
        return AsyncLimiter(burst, burst / rate)


class RateLimiter:
    """Ray actor through which requests to one service, or to several hosts, go: one in the whole cluster."""

    def __init__(self) -> None:
        self._limiters: dict[tuple[str, Limit], AsyncLimiter] = {}
        self._closed_until: dict[str, float] = {}

    async def enter(self, host: str, limit: Limit, requests: int = 1) -> float:
        """Wait for a turn, at once for several requests; 0, or the seconds of silence still to come where
        they are more than the limit says to wait for."""
        limiter = self._limiters.setdefault((host, limit), limit.limiter())
        for _ in range(requests):
            while (left := self.closed_seconds(host)) > 0:
                if left > limit.longest_wait_seconds:
                    return left
                await asyncio.sleep(left)
            await limiter.acquire()
        return 0.0

    def closed_seconds(self, host: str) -> float:
        return self._closed_until.get(host, 0.0) - time.monotonic()

    async def close(self, host: str, seconds: float) -> None:
        """Let nobody through for so long: the service has asked for it."""
        self._closed_until[host] = max(self._closed_until.get(host, 0.0), time.monotonic() + seconds)


def gate(name: str) -> ray.actor.ActorHandle:
    """The gate of that name; it stays with the cluster, so that jobs which run at once share it."""
    return _gate(name, ray.get_runtime_context().get_job_id())


@lru_cache
def _gate(name: str, job: str) -> ray.actor.ActorHandle:
    options = {"name": f"gate-{name}", "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    lasting = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 10_000, "num_cpus": 0}
    return ray.remote(RateLimiter).options(**options, **lasting).remote()


def retrying(attempts: int, limit: Limit) -> tenacity.AsyncRetrying:
    """Attempts with growing pauses, and jitter, for failures that may pass as soon as the limit says."""

    def may_pass(error: BaseException) -> bool:
        soon = getattr(error, "retry_after_seconds", 0.0) <= limit.longest_wait_seconds
        return isinstance(error, FetchError) and error.retryable and soon

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.3),
        reraise=True,
    )


class HostLimits:
    """HostLimits at a gate of several hosts, fetched some at a time: a call to the gate a request would cost
    more than the request."""

    def __init__(self, name: str, limit: Limit) -> None:
        self.limit = limit
        self._at_once = max(1, min(16, limit.requests // 20))
        self._gate = gate(name)
        self._left: Counter[str] = Counter()
        self._lock: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def take(self, host: str) -> None:
        """Wait for a turn; raises FetchError where the host wants to be left alone for too long."""
        async with self._lock[host]:
            if not self._left[host]:
                if silence := await self._gate.enter.remote(host, self.limit, self._at_once):
                    raise rate_limited(host, silence)
                self._left[host] = self._at_once
            self._left[host] -= 1

    async def close(self, host: str, seconds: float) -> None:
        """The host wants to be left alone, by all workers."""
        if seconds:
            self._left[host] = 0
            await self._gate.close.remote(host, seconds)


def rate_limited(service: str, seconds: float) -> FetchError:
    detail = f"{service} asks to be left alone for {seconds:.0f} s more: run again after that"
    return FetchError("rate_limited", detail, 429, True, seconds)


class Client:
    """Asks one service: in turn, again where that may help, and within deadlines.

    `attempts` are for one question; between them it waits with jitter, and as long as the service says.
    """

    def __init__(self, session: aiohttp.ClientSession, service: str, limit: Limit, attempts: int = 5) -> None:
        self.session, self.service, self.limit, self.attempts = session, service, limit, attempts
        self._gate = gate(service)

    async def ask(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `request` returns; it raises FetchError, or an error of aiohttp. Raises FetchError."""
        answer: Answer = await retrying(self.attempts, self.limit)(self._once, request)
        return answer

    async def _once(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        if silence := await self._gate.enter.remote(self.service, self.limit):
            raise rate_limited(self.service, silence)
        try:
            return await request()
        except FetchError as failure:
            if failure.retry_after_seconds:
                await self._gate.close.remote(self.service, failure.retry_after_seconds)
            raise
        except TimeoutError as error:
            raise FetchError("timeout", f"{self.service} did not answer in time", retryable=True) from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: cut short, so no JSON
            raise FetchError("connection", f"{self.service}: {error}", retryable=True) from error


def session(connect_seconds: float = 10.0, total_seconds: float = 30.0) -> aiohttp.ClientSession:
    """A session of our own name, with deadlines for the connection and for a whole request."""
    timeout = aiohttp.ClientTimeout(total=total_seconds, sock_connect=connect_seconds)
    return aiohttp.ClientSession(headers={"User-Agent": USER_AGENT}, timeout=timeout)


def check_status(status: int, url: str, retry_after: str | None = None) -> None:
    """Raise FetchError unless the answer has a body to read."""
    if status != 200:
        passing = status in PASSING_STATUSES or status >= 500
        silence = retry_after_seconds(retry_after) if passing else 0.0
        raise FetchError(f"http_{status}", f"{url} answered {status}", status, passing, silence)


def retry_after_seconds(retry_after: str | None) -> float:
    """The header Retry-After, seconds or a date, in seconds; 0 where there is none that can be read."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after or "") - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
