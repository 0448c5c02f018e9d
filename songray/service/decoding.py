"""The spectrograms of uploaded audio; runs in a process of its own, which may crash or be ended."""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import av
import pyarrow as pa

import songray.audio.decode  # noqa: F401  # loaded before memory_limit, since loading it takes more than that
from songray.audio.extract import COLUMNS, Extraction, extract_batch
from songray.media import AudioFile, open_container
from songray.tables import TABLES

MAX_SECONDS = 15 * 60.0  # duration of an upload
MEMORY_BYTES = 1 << 30  # that decoding one upload may allocate


def decode(audio: bytes, extraction: Extraction) -> tuple[dict[str, bytes], str, str]:
    """Worker: the spectrograms or waveforms of an upload by spec, as bytes; and the kind and detail of an
    error."""
    try:
        with memory_limit(MEMORY_BYTES):
            if duration_seconds(audio) > MAX_SECONDS:
                return {}, "too_long", f"the audio is longer than {MAX_SECONDS / 60:g} minutes"
            schema = pa.schema({name: TABLES["previews"].columns[name] for name in COLUMNS})
            preview = {"track_key": 0, "track_id": "", "audio": audio, "location": None}
            rows, _ = extract_batch(pa.Table.from_pylist([preview], schema), extraction)
    except MemoryError:
        return {}, "decoder_died", f"the decoder needed more than {MEMORY_BYTES >> 20} MB of memory"
    (row,) = rows.to_pylist()
    if row["error"]:
        return {}, row["error"], row["detail"]
    return {spec: row[spec] for spec in extraction.specs}, "", ""


def duration_seconds(audio: bytes) -> float:
    """The duration that the container reports; 0 where it reports none that can be read."""
    with suppress(av.FFmpegError, ValueError), open_container(AudioFile(io.BytesIO(audio))) as container:
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
