"""Leases: one process at a time writes a table, a run or an index.

The lease of `<name>` is the file `_leases/<name>/<generation>.json` of the largest generation. It is created
exclusively, so of several processes one gets it, and renewed while the process works. A lease that was
released, that was not renewed for EXPIRY_SECONDS, or whose process has ended on this machine is free: the
next process creates the next generation. A process whose lease was taken over meanwhile, because it was
suspended or cut off, learns of it by `check`, before it commits anything.

Clocks of machines that write one library must agree to within half of EXPIRY_SECONDS.
"""

from __future__ import annotations

import json
import os
import posixpath
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs

from songray.errors import Conflict, StorageError
from songray.storage import create, delete, list_files, read_json, storage_errors, write_json

RENEWAL_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
_ended: set[str] = set()  # holders of this process that hold no more


@dataclass(frozen=True)
class Lease:
    """The right to write what `name` stands for. Travels to workers by pickle."""

    filesystem: pyarrow.fs.FileSystem
    folder: str
    name: str
    generation: int
    holder: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return posixpath.join(self.folder, f"{self.generation:06d}.json")

    def check(self) -> None:
        """Raise Conflict where another process has taken the lease over."""
        if _generations(self.filesystem, self.folder)[-1:] != [self.generation]:
            raise Conflict(
                f"{self.name} was taken over by another process, so this one writes no more: what it had "
                "finished is kept"
            )

    def record(self, released: bool = False) -> dict[str, Any]:
        """The content of its file, renewed now."""
        return self.holder | {"renewed": time.time(), "released": released}

    def renew(self, released: bool = False) -> None:
        write_json(self.filesystem, self.path, self.record(released))


@contextmanager
def hold(filesystem: pyarrow.fs.FileSystem, root: str, name: str, take_over: bool = False) -> Iterator[Lease]:
    """Within, this process holds the lease of a table, a run or an index.

    Raises Conflict where another process holds it, unless `take_over` is set."""
    lease = _acquire(filesystem, posixpath.join(root, "_leases", name), name, take_over)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, ended), daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        ended.set()
        renewal.join()
        _ended.add(lease.holder["holder"])
        with suppress(StorageError):  # of a full disk: for other processes, it ends with this one
            lease.renew(released=True)


def _acquire(filesystem: pyarrow.fs.FileSystem, folder: str, name: str, take_over: bool) -> Lease:
    with storage_errors(folder):
        filesystem.create_dir(folder, recursive=True)
    while True:
        generations = _generations(filesystem, folder)
        newest = max(generations, default=0)
        before = read_json(filesystem, posixpath.join(folder, f"{newest:06d}.json")) or {"released": True}
        if not (take_over or _is_free(before)):
            raise Conflict(
                f"{name} is being written by another process: {before['job']} (process {before['pid']} on "
                f"{before['host']}), which renewed its lease {time.time() - before['renewed']:.0f} s ago. "
                "Wait until it has ended; --take-over stops it instead"
            )
        lease = Lease(filesystem, folder, name, newest + 1, _this_process())
        if create(filesystem, lease.path, json.dumps(lease.record(), indent=2).encode()):
            for generation in generations:  # a large generation is never used again, so no lease reappears
                with suppress(StorageError):
                    delete(filesystem, posixpath.join(folder, f"{generation:06d}.json"))
            return lease


def _generations(filesystem: pyarrow.fs.FileSystem, folder: str) -> list[int]:
    names = [posixpath.basename(path) for path in list_files(filesystem, folder)]
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))


def _is_free(record: dict[str, Any]) -> bool:
    return bool(
        record["released"]
        or record["holder"] in _ended
        or time.time() - record["renewed"] > EXPIRY_SECONDS
        or (record["machine"] == _machine() and not _is_running(record["pid"]))
    )


def _this_process() -> dict[str, Any]:
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:2]]
    return {
        "holder": uuid.uuid4().hex,
        "job": " ".join(word for word in words if word and not word.startswith("-")) or "python",
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
    }


def _machine() -> str:
    """What tells apart the machines, and the containers, in which a process id stands for one process."""
    try:
        space = os.readlink("/proc/self/ns/pid")
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()} {file.read().strip()} {space}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, as another user
        pass
    return True


def _renew(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(RENEWAL_SECONDS):
        with suppress(StorageError):  # the next renewal may succeed
            lease.renew()
