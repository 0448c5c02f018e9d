"""Every error that songray raises on purpose. A job prints one of these as a sentence; any other error is a
defect and keeps its traceback.

    SongrayError
    ├── InvalidOption        an option, or several together, cannot work
    ├── MissingInput         a table, a run or an index must exist first
    ├── Conflict             other settings, or another process, write the same output
    ├── CorruptData          a stored file cannot be read
    ├── StorageError         the storage of the library, or a file beside it, refuses
    ├── StageFailed          more rows failed than --max-failed-share allows
    ├── TrainingFailed       a training ended without an epoch that can be used
    ├── FetchError           a service on the web gave no usable answer
    ├── AudioError           a recording cannot be decoded or used
    └── QueryError           the index cannot answer
        ├── UnknownTrack     a track id that is not in the index
        └── NotEnoughTracks  fewer tracks fit than the query needs
"""

from __future__ import annotations

from typing import TypeVar

Kind = TypeVar("Kind", bound=BaseException)


class SongrayError(Exception):
    """The base of the tree. Its text is a whole message: what is wrong, where, and what to do next."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # Ray Data appends advice of its own to `args`

    def __str__(self) -> str:
        return self.message


class InvalidOption(SongrayError, ValueError):
    """A ValueError too, since pydantic reports only those as problems of the input that it validates."""


class MissingInput(SongrayError):
    """A table, a run or an index that must exist first."""


class Conflict(SongrayError):
    """A table holds rows that were made with other settings, or another process writes it."""


class CorruptData(SongrayError):
    """A stored file that cannot be read, or that is not what its checksum says."""


class StorageError(SongrayError):
    """The storage of a library refused a request: missing permission, full disk, unreachable bucket."""


class StageFailed(SongrayError):
    """More rows failed than the stage was allowed."""


class TrainingFailed(SongrayError):
    """A training that ended without an epoch that can be used."""


class FetchError(SongrayError):
    """A service on the web gave no usable answer.

    `kind` is a class that a person can count, `status` the HTTP status where there was one. `retryable` says
    whether a later attempt may succeed; `retry_after_seconds`, how long the service asks to wait before it.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        status: int | None = None,
        retryable: bool = False,
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(detail)
        self.kind, self.status = kind, status
        self.retryable, self.retry_after_seconds = retryable, retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        values = (self.kind, self.message, self.status, self.retryable, self.retry_after_seconds)
        return type(self), values


class AudioError(SongrayError):
    """A recording that cannot be decoded or used; `kind` is a class that a person can count."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind, self.message)


class QueryError(SongrayError):
    """The index cannot answer a query."""


class UnknownTrack(QueryError):
    """A track id that is not in the index."""


class NotEnoughTracks(QueryError):
    """Fewer tracks fit than the query needs."""


def songray_error(error: BaseException | None) -> SongrayError | None:
    """The SongrayError that an error is, or that it was raised for; None where there is none."""
    return original_error(error, SongrayError)


def original_error(error: BaseException | None, kind: type[Kind]) -> Kind | None:
    """The error of a kind that an error is, or that it was raised for; None where there is none.

    An error of a worker arrives wrapped: in Ray's RayTaskError (`cause`), which errors of Ray Data chain
    (`__cause__`), or in Ray Train's WorkerGroupError (`worker_failures`). This is the one place that knows.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        cause = getattr(one, "cause", None)  # Ray makes a class of its own that is of this kind too
        if isinstance(one, kind) and not isinstance(cause, BaseException):
            return one
        waiting += [one.__cause__, *getattr(one, "worker_failures", {}).values()]
        waiting.append(cause if isinstance(cause, BaseException) else None)
    return None
