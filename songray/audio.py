"""Bytes → mono samples: decoded by soundfile, else by PyAV; mixed down, resampled by soxr."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

MIN_SECONDS = 0.5  # shorter sounds say nothing about a song


class AudioError(ValueError):
    """Sound that cannot be used; `kind` is a class that a person can count."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Excerpt:
    """The part of a recording that stands for it: `seconds` from its middle."""

    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.seconds < MIN_SECONDS:
            raise ValueError(f"excerpt of {self.seconds} s: at least {MIN_SECONDS} s are needed")


def decode(sound: bytes | str, rate: int, excerpt: Excerpt) -> Samples:
    """The excerpt of an encoded sound, given as its bytes or as a file's path.

    Returns (samples,) mono at `rate` Hz, finite, about −1…1. Raises AudioError of the kinds missing,
    empty, not_audio, too_short, not_finite and silent.
    """
    samples, native_rate = _decode_native(sound, excerpt)
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", "the samples hold NaN or infinity")
    if len(samples) < MIN_SECONDS * native_rate:
        raise AudioError("too_short", f"{len(samples) / native_rate:.2f} s; {MIN_SECONDS} s are the least")
    mono: Samples = soxr.resample(samples, native_rate, rate, quality="HQ")
    if np.ptp(mono) < 1e-4:
        raise AudioError("silent", "the excerpt is silence")
    return mono


def _decode_native(sound: bytes | str, excerpt: Excerpt) -> tuple[Samples, int]:
    if isinstance(sound, str) and not os.path.exists(sound):
        raise AudioError("missing", f"{sound} is not there")
    if not (len(sound) if isinstance(sound, bytes) else os.path.getsize(sound)):
        raise AudioError("empty", "there are no bytes")
    try:
        return _decode_soundfile(sound, excerpt)
    except (soundfile.LibsndfileError, ValueError):
        return _decode_av(sound, excerpt)


def _decode_soundfile(sound: bytes | str, excerpt: Excerpt) -> tuple[Samples, int]:
    with soundfile.SoundFile(io.BytesIO(sound) if isinstance(sound, bytes) else sound) as file:
        wanted = round(excerpt.seconds * file.samplerate)
        if file.frames > wanted:
            file.seek((file.frames - wanted) // 2)
        channels = file.read(wanted, dtype="float32", always_2d=True)  # (samples, channels)
        if channels.size == 0:
            raise ValueError("soundfile found no samples")
        return channels.mean(axis=1), file.samplerate


def _decode_av(sound: bytes | str, excerpt: Excerpt) -> tuple[Samples, int]:
    try:
        with av.open(io.BytesIO(sound) if isinstance(sound, bytes) else sound, "r") as container:
            return _decode_container(container, excerpt)
    except (av.FFmpegError, IndexError, ValueError, OverflowError) as error:
        raise AudioError("not_audio", f"neither soundfile nor FFmpeg can decode it: {error}") from error


def _decode_container(container: av.container.InputContainer, excerpt: Excerpt) -> tuple[Samples, int]:
    stream = container.streams.audio[0]
    start = max(0.0, ((container.duration or 0) / av.time_base - excerpt.seconds) / 2)
    if start > 0:
        container.seek(round(start * av.time_base))
    resampler = av.AudioResampler("fltp", "mono", stream.rate)
    wanted = round(excerpt.seconds * stream.rate)
    pieces: list[Samples] = []
    try:
        for frame in container.decode(stream):
            pieces.extend(piece.to_ndarray()[0] for piece in resampler.resample(frame))
            if sum(map(len, pieces)) >= wanted:
                break
    except av.FFmpegError:
        if not pieces:  # what came before a broken part is still good
            raise
    if not pieces:
        raise ValueError("no audio was found")
    return np.concatenate(pieces)[:wanted], stream.rate
