"""Bytes → mono samples: decoded by soundfile, else by PyAV; mixed down, resampled by soxr."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

MIN_SECONDS = 0.5  # shorter sounds say nothing about a song
SILENCE = 1e-4  # sounds that vary by less are silent
LOUDEST = 1e6  # full scale is 1; the squares of larger numbers would soon overflow
RATES = (2_000, 768_000)  # Hz; what else a header says is an error in it
BLOCK_SAMPLES = 1 << 15  # decoded at a time, all channels together: they stay in the processor's cache


class AudioError(ValueError):
    """Sound that cannot be used; `kind` is a class that a person can count."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Excerpt:
    """The part of a recording that stands for it: so many seconds of its middle, of its start, or, by
    spread:n, in n pieces of equal length, evenly spread over it and joined."""

    seconds: float = 30.0
    at: str = "middle"

    def __post_init__(self) -> None:
        if not self.seconds >= MIN_SECONDS:
            raise ValueError(f"excerpt of {self.seconds} s: at least {MIN_SECONDS} s are needed")
        kind, _, count = self.at.partition(":")
        if self.at not in ("middle", "start") and not (kind == "spread" and count.isdecimal() and int(count)):
            raise ValueError(f"excerpt at {self.at!r}: choose middle, start or spread:n, n from 1")

    def pieces(self, total_seconds: float) -> list[tuple[float, float]]:
        """Start and length of what is taken of a recording, in seconds."""
        length = min(self.seconds, total_seconds)
        if self.at == "start":
            return [(0.0, length)]
        count = int(self.at.partition(":")[2] or 1)
        gap = (total_seconds - length) / (count + 1)
        return [(gap * (n + 1) + length / count * n, length / count) for n in range(count)]


@dataclass(frozen=True)
class Recording:
    """An excerpt as it was decoded, mixed down to mono."""

    samples: Samples
    rate: int  # Hz, the recording's own
    missing_seconds: float  # of the excerpt, which the file announces and does not hold

    def resampled(self, rate: int) -> Samples:
        """(samples,) at `rate` Hz; raises AudioError where nothing can be heard at that rate."""
        samples: Samples = soxr.resample(self.samples, self.rate, rate, quality="HQ")
        _refuse_silence(samples)
        return samples


def decode(sound: bytes | str, rate: int, excerpt: Excerpt) -> Samples:
    """The excerpt of an encoded sound, given as its bytes or as a file's path.

    Returns (samples,) mono at `rate` Hz, finite, about −1…1. Raises AudioError, see `read`.
    """
    return read(sound, excerpt).resampled(rate)


def read(sound: bytes | str, excerpt: Excerpt) -> Recording:
    """The excerpt of an encoded sound at its own rate; of a long one only the excerpt is decoded.

    Raises AudioError of the kinds missing, empty, not_audio, too_short, not_finite and silent.
    """
    with _open(sound) as file:
        if not file.seek(0, os.SEEK_END):
            raise AudioError("empty", "there are no bytes")
        file.seek(0)
        try:
            recording = _read_soundfile(file, excerpt)
        except (soundfile.SoundFileError, ValueError):
            file.seek(0)
            recording = _read_av(file, excerpt)
    _refuse_unusable(recording)
    return recording


def _open(sound: bytes | str) -> BinaryIO:
    if isinstance(sound, bytes):
        return io.BytesIO(sound)
    try:
        return open(sound, "rb")
    except OSError as error:
        raise AudioError("missing", f"{sound} cannot be opened: {error.strerror}") from error


def _read_soundfile(file: BinaryIO, excerpt: Excerpt) -> Recording:
    with soundfile.SoundFile(file) as sound:
        if sound.format == "MP3" and not _tells_its_length(file):
            raise ValueError("libsndfile guesses its length, and stops there")
        rate, channels = _plausible(sound.samplerate), sound.channels
        block = np.empty((max(1, BLOCK_SAMPLES // channels), channels), np.float32)
        weights = np.full(channels, 1 / channels, np.float32)

        def take(start: float, seconds: float) -> Samples:
            sound.seek(min(round(start * rate), sound.frames))
            mono = np.empty(round(seconds * rate), np.float32)
            filled = 0
            while filled < len(mono):
                piece = _next_block(sound, block[: len(mono) - filled])  # (samples, channels)
                if not len(piece):
                    break
                np.matmul(piece, weights, out=mono[filled : filled + len(piece)])
                filled += len(piece)
            return mono[:filled]

        return _excerpt(take, rate, sound.frames / rate, excerpt)


def _tells_its_length(file: BinaryIO) -> bool:
    """Whether the first frame of an MP3 says how many there are, as most do."""
    place = file.tell()
    file.seek(0)
    head = file.read(10)
    if head[:3] == b"ID3":
        seven_bits = [byte & 0x7F for byte in head[6:10]]
        file.seek(10 + sum(byte << shift for byte, shift in zip(seven_bits, (21, 14, 7, 0), strict=False)))
    first = head + file.read(4096)
    file.seek(place)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _plausible(rate: int) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"its header says {rate} Hz")
    return rate


def _next_block(sound: soundfile.SoundFile, block: Samples) -> Samples:
    try:
        piece: Samples = sound.read(out=block)
    except soundfile.LibsndfileError:  # what came before a broken part is still good
        return block[:0]
    return piece


def _excerpt(
    take: Callable[[float, float], Samples], rate: int, total_seconds: float | None, excerpt: Excerpt
) -> Recording:
    """The pieces of an excerpt, each by `take(start, seconds)`, which returns less where there is less."""
    pieces = [(0.0, excerpt.seconds)] if total_seconds is None else excerpt.pieces(total_seconds)
    samples = np.concatenate([take(*piece) for piece in pieces])
    if not len(samples):  # the file holds so much less than it announces
        samples = take(0.0, excerpt.seconds)
    announced = 0.0 if total_seconds is None else sum(seconds for _, seconds in pieces)
    return Recording(samples, rate, max(0.0, announced - len(samples) / rate))


def _read_av(file: BinaryIO, excerpt: Excerpt) -> Recording:
    try:
        # A playlist is probed as audio too: nothing that a file refers to is opened.
        with av.open(file, "r", options={"protocol_whitelist": "none"}) as container:
            stream = container.streams.audio[0]
            rate, microseconds = _plausible(stream.rate), container.duration

            def take(start: float, seconds: float) -> Samples:
                container.seek(round(start * av.time_base))
                return _decode_stream(container, stream, start, round(seconds * rate))

            total_seconds = None if microseconds is None else microseconds / av.time_base
            return _excerpt(take, rate, total_seconds, excerpt)
    except (av.FFmpegError, IndexError, ValueError, OverflowError) as error:
        raise AudioError("not_audio", f"neither soundfile nor FFmpeg can decode it: {error}") from error


def _decode_stream(
    container: av.container.InputContainer, stream: av.AudioStream, start: float, wanted: int
) -> Samples:
    """At most `wanted` mono samples from `start` seconds on; the stream stands somewhat before them."""
    planar = av.AudioResampler("fltp", rate=stream.rate)
    pieces, left = [np.empty(0, np.float32)], wanted
    for packet in container.demux(stream):
        try:
            frames = [piece for frame in packet.decode() for piece in planar.resample(frame)]
        except av.FFmpegError:  # a broken part; there may be good ones after it
            continue
        for frame in frames:
            early = 0 if frame.time is None else max(0, round((start - frame.time) * stream.rate))
            mono: Samples = frame.to_ndarray()[:, early : early + left].mean(axis=0)
            pieces.append(mono)
            left -= len(mono)
        if left <= 0:
            break
    return np.concatenate(pieces)


def _refuse_unusable(recording: Recording) -> None:
    samples = recording.samples
    if len(samples) < MIN_SECONDS * recording.rate:
        seconds = len(samples) / recording.rate
        raise AudioError("too_short", f"{seconds:.2f} s; {MIN_SECONDS} s are the least")
    if not max(-samples.min(), samples.max()) < LOUDEST:  # true of NaN, too
        raise AudioError("not_finite", f"the samples hold NaN, infinity or numbers beyond {LOUDEST:g}")
    _refuse_silence(samples)


def _refuse_silence(samples: Samples) -> None:
    if np.ptp(samples) < SILENCE:
        raise AudioError("silent", "the excerpt is silence")
