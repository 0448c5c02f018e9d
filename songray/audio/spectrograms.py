"""Samples → spectrograms: what librosa computes, in blocks that stay in the processor's cache.

A spectrogram is stored as bytes: uint8, time first, `bins` values a frame. Any tool can read it:

    np.frombuffer(row["mel128"], np.uint8).reshape(-1, 128) * (80 / 255) - 80   # dB, (frames, bins)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# librosa and scipy are imported in functions: the options of `songray transform` need SPECS only.

Samples = NDArray[np.float32]
Spectrogram = NDArray[np.uint8]  # (frames, bins), as it is stored
Plane = NDArray[np.float32]  # (frames, bins), before it is quantised
Input = NDArray[np.uint8 | np.float32]  # what a model takes: a Spectrogram, or samples, (samples, 1)

TOP_DB = 80.0  # dynamic range below the loudest bin
AMIN = 1e-10  # least power
MAX_LEVEL = 7.0  # of log10(gain × power + 1) with a gain of 10,000; music reaches 6.5
BLOCK_FRAMES = 64  # frames that are computed at a time, so that they stay in the processor's cache
BAND_BINS = 32  # neighbouring bands of a filter bank that are multiplied with the bins that they share


@dataclass(frozen=True)
class Spec:
    """Parameters of a spectrogram, in librosa's terms: a power spectrogram in dB; its mel bands where
    `n_mels` is set, their cepstral coefficients where `n_mfcc` is set, a chromagram where `n_chroma` is
    set. Where `gain` is set, log10(gain × power + 1) takes the place of dB, which are relative to the loudest
    bin."""

    rate: int  # Hz
    n_fft: int  # samples
    hop_length: int  # samples
    n_mels: int = 0
    fmax: float | None = None  # Hz, highest frequency of the mel bands; None: half the rate
    n_mfcc: int = 0
    n_chroma: int = 0
    version: int = 1  # raised when the same samples give other bytes
    gain: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters as a set of spectrograms records them. `gain` is left out where it is not set, as in
        the records of sets that were made before it existed."""
        return {name: value for name, value in asdict(self).items() if name != "gain" or value is not None}

    @property
    def bins(self) -> int:
        return self.n_mfcc or self.n_chroma or self.n_mels or 1 + self.n_fft // 2

    @property
    def range(self) -> tuple[float, float]:
        """The values that the bytes 0 and 255 stand for; values outside are stored as the nearer of them."""
        if self.n_chroma:
            return 0.0, 1.0
        if self.n_mfcc:  # bounds of the orthonormal DCT of n_mels bands in −TOP_DB…0
            return -TOP_DB * self.n_mels**0.5, TOP_DB * (2 * self.n_mels) ** 0.5 / np.pi * 1.001
        if self.gain:
            return 0.0, MAX_LEVEL
        return -TOP_DB, 0.0


SPECS = {
    "mel128": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128),
    "linear257": Spec(rate=22050, n_fft=512, hop_length=256),
    "mel128-8k": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128, fmax=8000),
    "mel96": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=96),
    "mfcc20-8k": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128, fmax=8000, n_mfcc=20),
    "chroma12": Spec(rate=22050, n_fft=2048, hop_length=512, n_chroma=12),
    "mel96-16k": Spec(rate=16000, n_fft=512, hop_length=256, n_mels=96, gain=10_000),
}
DEFAULT_SPECS = ("mel128", "mel96-16k")  # of a new set
WAVEFORM = "waveform-"  # and a rate in Hz: names samples, which some models take in place of a spectrogram


def is_waveform(name: str) -> bool:
    return name.startswith(WAVEFORM)


def compute(samples: Samples, names: Sequence[str]) -> dict[str, Plane]:
    """The spectrograms of samples, (samples,), for specs of their rate: (frames, bins) each, equal to
    librosa's.

    Values in dB are relative to the loudest bin, −80…0. Specs with equal windows share one Fourier transform.
    """
    energies = {name: _empty(samples, SPECS[name]) for name in names}
    for n_fft, hop_length in {(SPECS[name].n_fft, SPECS[name].hop_length) for name in names}:
        sharing = [n for n in names if (SPECS[n].n_fft, SPECS[n].hop_length) == (n_fft, hop_length)]
        for frames, power in _power(samples, n_fft, hop_length):
            for name in sharing:
                _gather(power, SPECS[name], energies[name][frames])
    return {name: _finish(energy, SPECS[name]) for name, energy in energies.items()}


def _empty(samples: Samples, spec: Spec) -> Plane:
    return np.empty((1 + len(samples) // spec.hop_length, spec.n_mels or spec.bins), np.float32)


def _power(samples: Samples, n_fft: int, hop_length: int) -> Iterator[tuple[slice, Plane]]:
    """Blocks of the power spectrogram, (frames, 1 + n_fft / 2), each with its slice; centred Hann windows."""
    import librosa.filters
    import scipy.fft

    window = librosa.filters.get_window("hann", n_fft).astype(np.float32)
    padded = np.pad(samples, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length]
    for first in range(0, len(frames), BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        amplitudes: Plane = np.abs(scipy.fft.rfft(frames[block] * window, overwrite_x=True))
        yield block, np.square(amplitudes, out=amplitudes)


def _gather(power: Plane, spec: Spec, out: Plane) -> None:
    """Write the power in each of the spec's bands to `out`."""
    if not (spec.n_mels or spec.n_chroma):
        out[:] = power
    for bands, bins, weights in _filters(spec):
        np.matmul(power[:, bins], weights, out=out[:, bands])


@cache
def _filters(spec: Spec) -> list[tuple[slice, slice, Plane]]:
    """librosa's filter bank in groups of neighbouring bands: bands, bins with weight, weights (bins,
    bands)."""
    import librosa.filters

    if spec.n_chroma:  # tuned to 440 Hz: a tuning estimated for each clip would be another variable
        bank = librosa.filters.chroma(sr=spec.rate, n_fft=spec.n_fft, n_chroma=spec.n_chroma, tuning=0.0)
    elif spec.n_mels:
        bank = librosa.filters.mel(sr=spec.rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmax=spec.fmax)
    else:
        return []
    groups = []
    for first in range(0, len(bank), BAND_BINS):
        bands = slice(first, first + BAND_BINS)
        used = np.flatnonzero(bank[bands].any(axis=0))
        bins = slice(used[0], used[-1] + 1)
        groups.append((bands, bins, np.ascontiguousarray(bank[bands, bins].T)))
    return groups


def _finish(energy: Plane, spec: Spec) -> Plane:
    """Band energies → dB, cepstral coefficients, absolute levels, or energies relative to the strongest pitch
    class."""
    import scipy.fft

    if spec.n_chroma:
        loudest = energy.max(axis=1, keepdims=True)
        np.divide(energy, loudest, out=energy, where=loudest > np.finfo(np.float32).tiny)
        return energy
    if spec.gain:
        energy *= spec.gain
        return np.log10(np.add(energy, 1, out=energy), out=energy)
    decibels = _decibels(energy)
    if spec.n_mfcc:
        cepstra: Plane = scipy.fft.dct(decibels, axis=1, norm="ortho")[:, : spec.n_mfcc]
        return cepstra
    return decibels


def _decibels(power: Plane) -> Plane:
    """librosa.power_to_db(power, ref=np.max, top_db=80), in place."""
    np.maximum(power, AMIN, out=power)
    np.log10(power, out=power)
    power *= 10
    power -= power.max()
    return np.maximum(power, -TOP_DB, out=power)


def quantise(plane: Plane, spec: Spec) -> Spectrogram:
    """The spec's range → 0…255, rounded: a step of 0.31 dB for a range of 80 dB."""
    low, high = spec.range
    levels: Plane = np.rint((plane - low) * (255 / (high - low)))
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def from_bytes(cell: bytes, spec: Spec) -> Spectrogram:
    """A cell of the table as an array, (frames, bins), without a copy."""
    return np.frombuffer(cell, np.uint8).reshape(-1, spec.bins)
