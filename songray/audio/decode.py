"""Encoded audio → mono samples: decoded by soundfile, else by PyAV; mixed down, resampled by soxr."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import soundfile
import soxr

from songray.audio.excerpt import MIN_SECONDS, Excerpt
from songray.audio.spectrograms import Samples
from songray.errors import AudioError
from songray.media import AudioFile, open_container

SILENCE = 1e-4  # peak-to-peak amplitude below which a recording is silent
LOUDEST = 1e6  # full scale is 1; the squares of larger samples would overflow
RATES = (2_000, 768_000)  # Hz; any other rate in a header is an error
CANCELLED = 1e-3  # energy of the channels' mean, relative to that of uncorrelated ones, which means that
# they cancel each other
# Samples of all channels that are decoded at a time: few enough for the processor's cache, and many enough
# for soundfile, which seeks after each block.
BLOCK_SAMPLES = 1 << 19


Mix = Callable[[Samples], Samples]  # (samples, channels) → (samples,)


@dataclass(frozen=True)
class Recording:
    """A decoded excerpt, mixed down to mono."""

    samples: Samples
    rate: int  # Hz, as in the file
    missing_seconds: float  # of the excerpt that the file announces and does not contain

    def resampled(self, rate: int) -> Samples:
        """(samples,) at `rate` Hz. Raises AudioError where the samples are silent at that rate."""
        samples: Samples = soxr.resample(self.samples, self.rate, rate, quality="HQ")
        if np.ptp(samples) < SILENCE:
            raise AudioError("silent", f"the excerpt is silence below {rate // 2} Hz")
        return samples


def decode(sound: bytes | str, excerpt: Excerpt) -> Recording:
    """The excerpt of an encoded sound, given as bytes or as a path, at the rate of the file. Only the excerpt
    is decoded.

    Raises AudioError of the kinds missing, empty, not_audio, too_short, not_finite and silent. An error of
    the storage is "missing"; any error of a decoder is "not_audio", whatever its type.
    """
    try:
        with io.BytesIO(sound) if isinstance(sound, bytes) else _open(sound) as opened:
            file = AudioFile(opened)
            try:
                recording = _read_file(file, excerpt)
            finally:
                file.check()
    except OSError as error:
        raise AudioError("missing", f"{sound!s} cannot be read: {error.strerror}") from error
    _check_usable(recording)
    return recording


def _open(path: str) -> io.FileIO:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a named pipe would wait for its writer
        raise AudioError("missing", f"{path} is not a file")
    return io.FileIO(path)


def _read_file(file: AudioFile, excerpt: Excerpt) -> Recording:
    if not file.seek(0, os.SEEK_END):
        raise AudioError("empty", "there are no bytes")
    mixer = Mixer()
    recording = _decode_file(file, excerpt, mixer.mean)
    if mixer.has_cancelled(recording.samples):
        return _decode_file(file, excerpt, first_channel)
    return recording


def _decode_file(file: AudioFile, excerpt: Excerpt, mix: Mix) -> Recording:
    """Decode by soundfile, else by FFmpeg, which also continues after corrupt packets. Raises AudioError."""
    for read in (_read_soundfile, _read_av):
        file.seek(0)
        try:
            return read(file, excerpt, mix)
        except MemoryError:
            raise
        except Exception as error:
            words = getattr(error, "strerror", None) or error
    raise AudioError("not_audio", f"neither soundfile nor FFmpeg can decode it: {words}")


def _read_soundfile(file: AudioFile, excerpt: Excerpt, mix: Mix) -> Recording:
    has_length = _has_length_header(file)
    file.seek(0)
    # A file descriptor is read in C, and the suffix of the file's name does not matter.
    source = file if file.descriptor is None else file.descriptor
    with soundfile.SoundFile(source, closefd=False) as sound:
        if sound.format == "MP3" and not has_length:
            raise ValueError("libsndfile estimates its length, and stops there")
        rate, channels = _checked_rate(sound.samplerate), sound.channels
        block = np.empty((max(1, BLOCK_SAMPLES // channels), channels), np.float32)

        def read(start: float, seconds: float) -> Samples:
            sound.seek(min(round(start * rate), sound.frames))
            mono = np.empty(round(seconds * rate), np.float32)
            filled = 0
            while filled < len(mono):
                read_block = sound.read(out=block[: len(mono) - filled])  # (samples, channels)
                if not len(read_block):
                    break
                mono[filled : filled + len(read_block)] = mix(read_block)
                filled += len(read_block)
            return mono[:filled]

        return _read_excerpt(read, rate, sound.frames / rate, excerpt)


def _has_length_header(file: AudioFile) -> bool:
    """Whether the first frame of an MP3 contains the number of frames, as in most files."""
    head = file.read(10)
    if head[:3] == b"ID3":
        file.seek(10 + sum(byte << 7 * place for place, byte in enumerate(head[:5:-1])))
    first = head + file.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _checked_rate(rate: int) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"its header says {rate} Hz")
    return rate


class Mixer:
    """Mixes channels down to their mean, and says whether they cancel each other in it, as in stereo with the
    phase of one channel inverted."""

    def __init__(self) -> None:
        self._energy = 0.0  # of the mean of uncorrelated channels as loud as these

    def mean(self, channels: Samples) -> Samples:
        """(samples, channels) → (samples,); ten times as fast as numpy's mean."""
        count = channels.shape[1]
        self._energy += float(np.vdot(channels, channels)) / count**2
        mono: Samples = channels @ np.full(count, 1 / count, np.float32)
        return mono

    def has_cancelled(self, mono: Samples) -> bool:
        return float(np.vdot(mono, mono)) < CANCELLED * self._energy


def first_channel(channels: Samples) -> Samples:
    return channels[:, 0]


def _read_excerpt(
    read: Callable[[float, float], Samples], rate: int, total_seconds: float | None, excerpt: Excerpt
) -> Recording:
    """The pieces of an excerpt, each by `read(start, seconds)`, which returns fewer samples at the end."""
    announced = min(total_seconds or 0.0, excerpt.seconds)
    pieces = [(0.0, excerpt.seconds)]  # a short file is read to its end, whatever length it announces
    if total_seconds and total_seconds > excerpt.seconds:
        pieces = excerpt.pieces(total_seconds)
    parts = [read(*piece) for piece in pieces]
    samples = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if len(samples) < announced * rate / 2:  # the file is so much shorter than it announces
        samples = max(samples, read(0.0, excerpt.seconds), key=len)
    return Recording(samples, rate, round(max(0.0, announced - len(samples) / rate), 3))


def _read_av(file: AudioFile, excerpt: Excerpt, mix: Mix) -> Recording:
    with open_container(file) as container:
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise ValueError("FFmpeg has no decoder for it")
        rate, microseconds = _checked_rate(stream.rate), container.duration

        def read(start: float, seconds: float) -> Samples:
            container.seek(round(start * av.time_base))
            return _decode_stream(container, stream, mix, start, round(seconds * rate))

        total_seconds = None if microseconds is None else microseconds / av.time_base
        return _read_excerpt(read, rate, total_seconds, excerpt)


def _decode_stream(
    container: av.container.InputContainer, stream: av.AudioStream, mix: Mix, start: float, samples: int
) -> Samples:
    """At most so many mono samples from `start` seconds on; the stream is positioned before them."""
    resampler = av.AudioResampler("flt", rate=stream.rate)  # interleaved: PyAV crashes on 8 planes and more
    parts, left = [np.empty(0, np.float32)], samples
    for packet in container.demux(stream):
        try:
            frames = [out for frame in packet.decode() for out in resampler.resample(frame)]
        except av.FFmpegError:  # a corrupt packet; valid ones may follow
            continue
        for frame in frames:
            early = 0 if frame.time is None else max(0, round((start - frame.time) * stream.rate))
            channels = np.asarray(frame.to_ndarray(), np.float32).reshape(frame.samples, -1)
            parts.append(mix(channels[early : early + left]))
            left -= len(parts[-1])
        if left <= 0:
            break
    return np.concatenate(parts)


def _check_usable(recording: Recording) -> None:
    samples = recording.samples
    if len(samples) < MIN_SECONDS * recording.rate:
        seconds = len(samples) / recording.rate
        raise AudioError("too_short", f"{seconds:.2f} s; at least {MIN_SECONDS} s are needed")
    low, high = samples.min(), samples.max()
    if not max(-low, high) < LOUDEST:  # also for NaN
        raise AudioError("not_finite", f"the samples contain NaN, infinity or values beyond {LOUDEST:g}")
    if high - low < SILENCE:
        raise AudioError("silent", "the excerpt is silence")
