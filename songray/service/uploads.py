"""The deployment that embeds uploaded audio, and texts, by the functions of the batch jobs.

It is the one module of the service that loads torch. Audio is decoded in other processes, and encoded
together with what other requests upload at the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import ray
from ray import serve

from songray.audio.extract import Extraction
from songray.audio.inputs import from_bytes
from songray.audio.sets import extraction_of
from songray.learning import runs
from songray.learning.encoder import Encoder, load
from songray.library import Library, Vectors
from songray.service.decoding import decode
from songray.service.options import UPLOAD_BATCH
from songray.service.snapshots import with_latest

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
    """Deployment: has the encoder of the run that is served, and that of the one before or after it."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.loaded: dict[str, LoadedEncoder] = {}  # by run
        self.loading = Lock()
        self.decoders = asyncio.Semaphore(DECODERS)
        self.decode = ray.remote(num_cpus=0, max_retries=0, max_calls=MAX_DECODES)(decode)

    async def reconfigure(self, config: dict[str, str]) -> None:
        await asyncio.to_thread(self._of, runs.choose(self.library, config["run"]).name)

    async def embed(self, audio: bytes, run: str) -> EmbeddedUpload:
        loaded = await self._loaded(run)
        try:
            async with self.decoders:
                spectrograms, error, detail = await self.decode.remote(audio, loaded.extraction)
        except ray.exceptions.WorkerCrashedError:
            detail = f"the decoder crashed, or took longer than {DECODE_SECONDS:g} s"
            return EmbeddedUpload(None, "decoder_died", detail)
        if error:
            return EmbeddedUpload(None, error, detail)
        return EmbeddedUpload(await self.encode((loaded.encoder, spectrograms)))

    async def embed_text(self, text: str, run: str) -> Vectors | None:
        """The vector of a text, (dimension,); None where the run takes no text."""
        loaded = await self._loaded(run)
        return await asyncio.to_thread(loaded.encoder.encode_text, text)

    @serve.batch(max_batch_size=UPLOAD_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def encode(self, uploads: list[tuple[Encoder, dict[str, bytes]]]) -> list[Vectors]:
        return await asyncio.to_thread(encode_uploads, uploads)

    async def _loaded(self, run: str) -> LoadedEncoder:
        if (loaded := self.loaded.get(run)) is None:
            loaded = await asyncio.to_thread(self._of, run)
        return loaded

    def _of(self, run: str) -> LoadedEncoder:
        """The encoder of a run; that of one other run is kept, which requests in progress may need."""
        with self.loading:
            loaded = self.loaded.get(run) or load_encoder(self.library, run)
            self.loaded = with_latest(self.loaded, run, loaded)
        return loaded


@dataclass(frozen=True)
class LoadedEncoder:
    encoder: Encoder
    extraction: Extraction  # of an upload for it


def load_encoder(library: Library, name: str) -> LoadedEncoder:
    run = runs.choose(library, name)
    encoder = load(library, run)
    extraction = extraction_of(library, run.set, encoder.specs)
    return LoadedEncoder(encoder, replace(extraction, seconds_per_track=DECODE_SECONDS))


def encode_uploads(uploads: Sequence[tuple[Encoder, dict[str, bytes]]]) -> list[Vectors]:
    """The vector of each upload by its encoder; uploads of one encoder are encoded together."""
    vectors: dict[int, Vectors] = {}
    for encoder in {id(encoder): encoder for encoder, _ in uploads}.values():
        numbers = [number for number, (other, _) in enumerate(uploads) if other is encoder]
        spectrograms = {
            spec: [from_bytes(uploads[number][1][spec], spec) for number in numbers] for spec in encoder.specs
        }
        vectors |= dict(zip(numbers, encoder.encode(spectrograms), strict=True))
    return [vectors[number] for number in range(len(uploads))]
