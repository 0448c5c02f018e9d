"""Bytes → mono samples: decoded by soundfile, else by PyAV; mixed down, resampled by soxr."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from songray.errors import AudioError

Samples = NDArray[np.float32]

MIN_SECONDS = 0.5  # shorter sounds say nothing about a song
SILENCE = 1e-4  # sounds that vary by less are silent
LOUDEST = 1e6  # full scale is 1; the squares of larger numbers would soon overflow
RATES = (2_000, 768_000)  # Hz; what else a header says is an error in it
BLOCK_SAMPLES = 1 << 19  # decoded at a time, all channels together: the processor's cache holds them,
# and soundfile, which seeks after each block, does not seek often


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
        """(samples,) at `rate` Hz; raises AudioError where nothing is left to hear at that rate."""
        samples: Samples = soxr.resample(self.samples, self.rate, rate, quality="HQ")
        if np.ptp(samples) < SILENCE:
            raise AudioError("silent", f"the excerpt is silence below {rate // 2} Hz")
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
    try:
        with io.BytesIO(sound) if isinstance(sound, bytes) else io.FileIO(sound) as file:
            recording = _read_file(file, excerpt)
    except OSError as error:
        raise AudioError("missing", f"{sound!s} cannot be read: {error.strerror}") from error
    _refuse_unusable(recording)
    return recording


def _read_file(file: io.BytesIO | io.FileIO, excerpt: Excerpt) -> Recording:
    if not file.seek(0, os.SEEK_END):
        raise AudioError("empty", "there are no bytes")
    file.seek(0)
    try:
        return _read_soundfile(file, excerpt)
    except (soundfile.SoundFileError, ValueError):  # FFmpeg also goes on after a broken part
        file.seek(0)
        return _read_av(file, excerpt)


def _read_soundfile(file: io.BytesIO | io.FileIO, excerpt: Excerpt) -> Recording:
    tells_its_length = _tells_its_length(file)
    file.seek(0)
    # By its descriptor a file is read in C, and the ending of its name does not matter.
    source = file if isinstance(file, io.BytesIO) else file.fileno()
    with soundfile.SoundFile(source, closefd=False) as sound:
        if sound.format == "MP3" and not tells_its_length:
            raise ValueError("libsndfile guesses its length, and stops there")
        rate, channels = _plausible(sound.samplerate), sound.channels
        block = np.empty((max(1, BLOCK_SAMPLES // channels), channels), np.float32)

        def take(start: float, seconds: float) -> Samples:
            sound.seek(min(round(start * rate), sound.frames))
            mono = np.empty(round(seconds * rate), np.float32)
            filled = 0
            while filled < len(mono):
                piece = sound.read(out=block[: len(mono) - filled])  # (samples, channels)
                if not len(piece):
                    break
                mono[filled : filled + len(piece)] = _mixed(piece)
                filled += len(piece)
            return mono[:filled]

        return _excerpt(take, rate, sound.frames / rate, excerpt)


def _tells_its_length(file: io.BytesIO | io.FileIO) -> bool:
    """Whether the first frame of an MP3 says how many there are, as most do."""
    head = file.read(10)
    if head[:3] == b"ID3":
        file.seek(10 + sum(byte << 7 * place for place, byte in enumerate(head[:5:-1])))
    first = head + file.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _plausible(rate: int) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"its header says {rate} Hz")
    return rate


def _mixed(channels: Samples) -> Samples:
    """The mean of the channels, (samples, channels) → (samples,): 10 times as fast as numpy's mean."""
    count = channels.shape[1]
    mono: Samples = channels @ np.full(count, 1 / count, np.float32)
    return mono


def _excerpt(
    take: Callable[[float, float], Samples], rate: int, total_seconds: float | None, excerpt: Excerpt
) -> Recording:
    """The pieces of an excerpt, each by `take(start, seconds)`, which returns less where there is less."""
    announced = min(total_seconds or 0.0, excerpt.seconds)
    pieces = [(0.0, excerpt.seconds)]  # of what is short, all that there is, whatever it announces
    if total_seconds and total_seconds > excerpt.seconds:
        pieces = excerpt.pieces(total_seconds)
    taken = [take(*piece) for piece in pieces]
    samples = np.concatenate(taken) if len(taken) > 1 else taken[0]
    if not len(samples):  # the file holds so much less than it announces
        samples = take(0.0, excerpt.seconds)
    return Recording(samples, rate, round(max(0.0, announced - len(samples) / rate), 3))


def _read_av(file: io.BytesIO | io.FileIO, excerpt: Excerpt) -> Recording:
    try:
        # A playlist is probed as audio too: nothing that a file refers to is opened.
        with av.open(file, "r", options={"protocol_whitelist": "none"}) as container:
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("no decoder for it")
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
    floats = av.AudioResampler("flt", rate=stream.rate)  # not planar: PyAV crashes on 8 planes and more
    pieces, left = [np.empty(0, np.float32)], wanted
    for packet in container.demux(stream):
        try:
            frames = [piece for frame in packet.decode() for piece in floats.resample(frame)]
        except av.FFmpegError:  # a broken part; there may be good ones after it
            continue
        for frame in frames:
            early = 0 if frame.time is None else max(0, round((start - frame.time) * stream.rate))
            channels = np.asarray(frame.to_ndarray(), np.float32).reshape(frame.samples, -1)
            mono = _mixed(channels[early : early + left])
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
    low, high = samples.min(), samples.max()
    if not max(-low, high) < LOUDEST:  # true of NaN, too
        raise AudioError("not_finite", f"the samples hold NaN, infinity or numbers beyond {LOUDEST:g}")
    if high - low < SILENCE:
        raise AudioError("silent", "the excerpt is silence")
