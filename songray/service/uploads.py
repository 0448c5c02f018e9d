"""Sound that a listener sends → its vector, on the very way of the batch jobs: decoded in a process of its
own, which may crash or be stopped, then encoded together with what others send at the time."""

from __future__ import annotations

import asyncio
import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import av
import pyarrow as pa
import ray
from ray import serve

from songray.audio.transform import SPECS, TransformConfig, from_bytes, transform_batch
from songray.learning import runs
from songray.learning.embed import vectors
from songray.library import TABLES, Library, Vectors, read_json

MOST_SECONDS = 15 * 60.0  # of sound
DECODE_SECONDS = 20.0  # a decoder that takes longer is given up
DECODE_BYTES = 1 << 30  # of memory, that a decoder may take
DECODERS = 2  # processes that decode for one encoder
DECODES_A_PROCESS = 100  # after which it makes room for a fresh one
BATCH = 16
BATCH_WAIT_SECONDS = 0.01


@dataclass(frozen=True)
class Heard:
    """What became of a sound: its vector, (dimension,), or the class of what is wrong with it."""

    vector: Vectors | None
    error: str = ""
    detail: str = ""


class Encoder:
    """Deployment: holds a run's encoder."""

    def __init__(self, library: Library, run: str) -> None:
        found = runs.choose(library, run)
        self.encoder = runs.load(library, found)
        self.spec = self.encoder.model.spec
        made_by = read_json(
            library.filesystem, f"{library.table('spectrograms', found.set).path}/_made_by.json"
        )
        excerpt = {f"excerpt_{name}": value for name, value in (made_by or {}).get("excerpt", {}).items()}
        self.config = TransformConfig(specs=(self.spec,), seconds_per_track=DECODE_SECONDS, **excerpt)
        self.decoders = asyncio.Semaphore(DECODERS)
        self.decode = ray.remote(num_cpus=0, max_retries=0, max_calls=DECODES_A_PROCESS)(decode)

    async def hear(self, audio: bytes) -> Heard:
        try:
            async with self.decoders:
                spectrogram, error, detail = await self.decode.remote(audio, self.config)
        except ray.exceptions.WorkerCrashedError:
            detail = f"its decoder crashed, or took longer than {DECODE_SECONDS:g} s"
            return Heard(None, "decoder_died", detail)
        return Heard(None, error, detail) if error else Heard(await self.encode(spectrogram))

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def encode(self, spectrograms: list[bytes]) -> list[Vectors]:
        planes = [from_bytes(one, SPECS[self.spec]) for one in spectrograms]
        return list(await asyncio.to_thread(vectors, self.encoder, planes))


def decode(audio: bytes, config: TransformConfig) -> tuple[bytes, str, str]:
    """Worker: the spectrogram of a sound, as the table would store it; or a class of errors, and why."""
    try:
        with memory_limited(DECODE_BYTES):
            if seconds_of(audio) > MOST_SECONDS:
                return b"", "too_long", f"it is longer than {MOST_SECONDS / 60:g} minutes"
            columns = {
                name: TABLES["previews"].columns[name]
                for name in ("track_key", "track_id", "audio", "location")
            }
            preview = {"track_key": 0, "track_id": "", "audio": audio, "location": None}
            rows, _ = transform_batch(pa.Table.from_pylist([preview], pa.schema(columns)), config)
    except MemoryError:
        return b"", "decoder_died", f"its decoder wanted more than {DECODE_BYTES >> 20} MB of memory"
    (row,) = rows.to_pylist()
    return row[config.specs[0]] or b"", row["error"] or "", row["detail"] or ""


def seconds_of(audio: bytes) -> float:
    """What its container says of its length; 0 where it says nothing that can be read."""
    nothing_referred_to = {"protocol_whitelist": "none"}
    with (
        suppress(av.FFmpegError, ValueError),
        av.open(io.BytesIO(audio), "r", metadata_errors="ignore", options=nothing_referred_to) as container,
    ):
        return (container.duration or 0) / av.time_base
    return 0.0


@contextmanager
def memory_limited(size_bytes: int) -> Iterator[None]:
    """Within, the process may take so much more address space than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (taken + size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
