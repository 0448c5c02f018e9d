"""The HTTP client of all sources and downloads: cluster-wide rate limits, retries, kinds of errors."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import tenacity

from songray.errors import FetchError, InvalidOption

if TYPE_CHECKING:  # imported in functions: the options of sources need `Limit`, and --help must be quick
    import aiohttp
    import ray
    from aiolimiter import AsyncLimiter

USER_AGENT = "songray (https://pypi.org/project/songray)"
RETRYABLE_STATUSES = frozenset({408, 425, 429})  # and all of 500…599
NAMESPACE = "songray"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limit:
    """At most `requests` in any `seconds`, for all workers together."""

    requests: int
    seconds: float
    longest_wait_seconds: float = 120.0  # a service that asks for a longer pause is reported instead

    def __post_init__(self) -> None:
        for name in ("requests", "seconds"):
            if getattr(self, name) <= 0:
                raise InvalidOption(f"{name} of a rate limit is {getattr(self, name)}: must be above 0")

    @classmethod
    def at(cls, requests_per_second: float, window_seconds: float) -> Limit:
        """The limit of a service that counts requests in windows of so many seconds."""
        requests = max(1, round(requests_per_second * window_seconds))
        return cls(requests, requests / requests_per_second)

    def limiter(self) -> AsyncLimiter:
        """A leaky bucket admits a burst of its size, then a constant rate: the sum stays within the limit."""
        from aiolimiter import AsyncLimiter

        burst = max(1, self.requests // 10)
        rate = max(1, self.requests - burst) / self.seconds
        return AsyncLimiter(burst, burst / rate)


class RateLimiter:
    """Ray actor that admits requests to one service, or to several hosts: one actor in the whole cluster."""

    def __init__(self) -> None:
        self._limiters: dict[tuple[str, Limit], AsyncLimiter] = {}
        self._paused_until: dict[str, float] = {}

    async def acquire(self, host: str, limit: Limit, requests: int = 1) -> float:
        """Wait until so many requests are admitted. Returns 0, or the seconds that a host still pauses where
        that is longer than the limit says to wait."""
        limiter = self._limiters.setdefault((host, limit), limit.limiter())
        for _ in range(requests):
            while (left := self.pause_seconds(host)) > 0:
                if left > limit.longest_wait_seconds:
                    return left
                await asyncio.sleep(left)
            await limiter.acquire()
        return 0.0

    def pause_seconds(self, host: str) -> float:
        """What is left of the pause that a host asked for."""
        return self._paused_until.get(host, 0.0) - time.monotonic()

    async def pause(self, host: str, seconds: float) -> None:
        """Admit no request to the host for so long."""
        self._paused_until[host] = max(self._paused_until.get(host, 0.0), time.monotonic() + seconds)


def rate_limiter(name: str) -> ray.actor.ActorHandle:
    """The limiter of that name; it stays with the cluster, so that concurrent jobs share it."""
    import ray

    return _rate_limiter(name, ray.get_runtime_context().get_job_id())


@lru_cache
def _rate_limiter(name: str, job: str) -> ray.actor.ActorHandle:
    import ray

    shared = {"namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    restarts = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 10_000, "num_cpus": 0}
    return ray.remote(RateLimiter).options(name=f"rate-limiter-{name}", **shared, **restarts).remote()


def retrying(attempts: int, limit: Limit) -> tenacity.AsyncRetrying:
    """Attempts with exponential backoff and jitter, for FetchErrors that are retryable within the limit's
    longest wait."""

    def is_retryable(error: BaseException) -> bool:
        if not isinstance(error, FetchError):
            return False
        return error.retryable and error.retry_after_seconds <= limit.longest_wait_seconds

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_retryable),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.3),
        reraise=True,
    )


class HostLimits:
    """Requests of one worker to many hosts. Permits are acquired some at a time: one call of the rate limiter
    for each request would cost more than the request."""

    def __init__(self, name: str, limit: Limit) -> None:
        self.limit = limit
        self._permits_at_once = max(1, min(16, limit.requests // 20))
        self._limiter = rate_limiter(name)
        self._permits: Counter[str] = Counter()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def acquire(self, host: str) -> None:
        """Wait for a permit. Raises FetchError where the host asked for a pause that is too long."""
        async with self._locks[host]:
            if not self._permits[host]:
                if pause := await self._limiter.acquire.remote(host, self.limit, self._permits_at_once):
                    raise rate_limited(host, pause)
                self._permits[host] = self._permits_at_once
            self._permits[host] -= 1

    async def pause(self, host: str, seconds: float) -> None:
        """Have no worker send a request to the host for so long."""
        if seconds:
            self._permits[host] = 0
            await self._limiter.pause.remote(host, seconds)


def rate_limited(service: str, seconds: float) -> FetchError:
    detail = f"{service} accepts no request for another {seconds:.0f} s: run again after that"
    return FetchError("rate_limited", detail, 429, True, seconds)


class Client:
    """Sends requests to one service, within its rate limit.

    `attempts` holds for one request; between attempts it waits with jitter, or as long as the service says.
    """

    def __init__(self, session: aiohttp.ClientSession, service: str, limit: Limit, attempts: int = 5) -> None:
        self.session, self.service, self.limit, self.attempts = session, service, limit, attempts
        self._limiter = rate_limiter(service)

    async def request(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `send` returns; it may raise FetchError or an error of aiohttp. Raises FetchError."""
        answer: Answer = await retrying(self.attempts, self.limit)(self._attempt, send)
        return answer

    async def _attempt(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        import aiohttp

        if pause := await self._limiter.acquire.remote(self.service, self.limit):
            raise rate_limited(self.service, pause)
        try:
            return await send()
        except FetchError as error:
            if error.retry_after_seconds:
                await self._limiter.pause.remote(self.service, error.retry_after_seconds)
            raise
        except TimeoutError as error:
            raise FetchError("timeout", f"{self.service} did not answer in time", retryable=True) from error
        except RecursionError as error:
            raise FetchError("malformed", f"{self.service}: JSON that is nested too deeply", 200) from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: JSON that was cut off
            raise FetchError("connection", f"{self.service}: {error}", retryable=True) from error


def session(connect_seconds: float = 10.0, total_seconds: float = 30.0) -> aiohttp.ClientSession:
    """A session with songray's user agent, and deadlines for the connection and for a whole request."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=total_seconds, sock_connect=connect_seconds)
    return aiohttp.ClientSession(headers={"User-Agent": USER_AGENT}, timeout=timeout)


def check_status(status: int, url: str, retry_after: str | None = None) -> None:
    """Raise FetchError unless the status is 200."""
    if status != 200:
        retryable = status in RETRYABLE_STATUSES or status >= 500
        pause = retry_after_seconds(retry_after) if retryable else 0.0
        raise FetchError(f"http_{status}", f"{url} answered {status}", status, retryable, pause)


def retry_after_seconds(header: str | None) -> float:
    """The header Retry-After, seconds or a date, in seconds; 0 where it is absent or cannot be read."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header or "") - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
