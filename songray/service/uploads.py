"""The deployment that embeds uploaded audio by the functions of the batch jobs.

It is the one module of the service that loads torch. Audio is decoded in a process of its own, which may
crash or be ended, and encoded together with what other requests upload at the time.
"""

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

from songray.audio.spectrograms import SPECS, from_bytes
from songray.audio.transform import TransformConfig, transform_batch
from songray.learning import runs
from songray.learning.encoder import encode, load
from songray.library import TABLES, Library, Vectors, read_json
from songray.service.options import UPLOAD_BATCH

MAX_SECONDS = 15 * 60.0  # duration of an upload
DECODE_SECONDS = 20.0  # after which a decoder is ended
DECODE_BYTES = 1 << 30  # memory that a decoder may allocate
DECODERS = 2  # decoding processes of one replica
MAX_DECODES = 100  # after which a decoding process is replaced
BATCH_WAIT_SECONDS = 0.01


@dataclass(frozen=True)
class EmbeddedUpload:
    """The vector of an upload, (dimension,), or the kind of error that prevents one."""

    vector: Vectors | None
    error: str = ""
    detail: str = ""


class UploadEncoder:
    """Deployment: has the encoder of a run."""

    def __init__(self, library: Library, run_name: str) -> None:
        run = runs.choose(library, run_name)
        self.encoder = load(library, run)
        self.spec = self.encoder.model.spec
        path = f"{library.table('spectrograms', run.set).path}/_made_by.json"
        made_by = read_json(library.filesystem, path) or {}
        excerpt = {f"excerpt_{name}": value for name, value in made_by.get("excerpt", {}).items()}
        self.config = TransformConfig(specs=(self.spec,), seconds_per_track=DECODE_SECONDS, **excerpt)
        self.decoders = asyncio.Semaphore(DECODERS)
        self.decode = ray.remote(num_cpus=0, max_retries=0, max_calls=MAX_DECODES)(decode)

    async def embed(self, audio: bytes) -> EmbeddedUpload:
        try:
            async with self.decoders:
                spectrogram, error, detail = await self.decode.remote(audio, self.config)
        except ray.exceptions.WorkerCrashedError:
            detail = f"the decoder crashed, or took longer than {DECODE_SECONDS:g} s"
            return EmbeddedUpload(None, "decoder_died", detail)
        if error:
            return EmbeddedUpload(None, error, detail)
        return EmbeddedUpload(await self.encode(spectrogram))

    @serve.batch(max_batch_size=UPLOAD_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def encode(self, spectrograms: list[bytes]) -> list[Vectors]:
        planes = [from_bytes(spectrogram, SPECS[self.spec]) for spectrogram in spectrograms]
        return list(await asyncio.to_thread(encode, self.encoder, planes))


def decode(audio: bytes, config: TransformConfig) -> tuple[bytes, str, str]:
    """Worker: the spectrogram of an upload, as the table stores it, and the kind and detail of an error."""
    try:
        with memory_limit(DECODE_BYTES):
            if duration_seconds(audio) > MAX_SECONDS:
                return b"", "too_long", f"the audio is longer than {MAX_SECONDS / 60:g} minutes"
            names = ("track_key", "track_id", "audio", "location")
            schema = pa.schema({name: TABLES["previews"].columns[name] for name in names})
            preview = {"track_key": 0, "track_id": "", "audio": audio, "location": None}
            rows, _ = transform_batch(pa.Table.from_pylist([preview], schema), config)
    except MemoryError:
        return b"", "decoder_died", f"the decoder needed more than {DECODE_BYTES >> 20} MB of memory"
    (row,) = rows.to_pylist()
    return row[config.specs[0]] or b"", row["error"] or "", row["detail"] or ""


def duration_seconds(audio: bytes) -> float:
    """The duration that the container reports; 0 where it reports none that can be read."""
    no_references = {"protocol_whitelist": "none"}  # a playlist could name local files
    with (
        suppress(av.FFmpegError, ValueError),
        av.open(io.BytesIO(audio), "r", metadata_errors="ignore", options=no_references) as container,
    ):
        return (container.duration or 0) / av.time_base
    return 0.0


@contextmanager
def memory_limit(size_bytes: int) -> Iterator[None]:
    """Within the context the process may allocate no more address space than this beyond what it has. Raises
    MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm") as file:
            allocated = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (allocated + size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
