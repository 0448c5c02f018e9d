"""The deployment that embeds uploaded audio by the functions of the batch jobs.

It is the one module of the service that loads torch. Audio is decoded in other processes, and encoded
together with what other requests upload at the time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import ray
from ray import serve

from songray.audio.spectrograms import SPECS, from_bytes
from songray.audio.transform import TransformConfig, made_by
from songray.learning import runs
from songray.learning.encoder import load
from songray.library import Library, Vectors
from songray.service.decoding import decode
from songray.service.options import UPLOAD_BATCH

DECODE_SECONDS = 20.0  # after which a decoder is ended
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
        settings = made_by(library, run.set).get("excerpt", {})
        excerpt = {f"excerpt_{name}": value for name, value in settings.items()}
        self.config = TransformConfig(specs=self.encoder.specs, seconds_per_track=DECODE_SECONDS, **excerpt)
        self.decoders = asyncio.Semaphore(DECODERS)
        self.decode = ray.remote(num_cpus=0, max_retries=0, max_calls=MAX_DECODES)(decode)

    async def embed(self, audio: bytes) -> EmbeddedUpload:
        try:
            async with self.decoders:
                spectrograms, error, detail = await self.decode.remote(audio, self.config)
        except ray.exceptions.WorkerCrashedError:
            detail = f"the decoder crashed, or took longer than {DECODE_SECONDS:g} s"
            return EmbeddedUpload(None, "decoder_died", detail)
        if error:
            return EmbeddedUpload(None, error, detail)
        return EmbeddedUpload(await self.encode(spectrograms))

    @serve.batch(max_batch_size=UPLOAD_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def encode(self, uploads: list[dict[str, bytes]]) -> list[Vectors]:
        spectrograms = {
            spec: [from_bytes(upload[spec], SPECS[spec]) for upload in uploads] for spec in self.encoder.specs
        }
        return list(await asyncio.to_thread(self.encoder.encode, spectrograms))
