"""Previews, and what librosa makes of samples: shared by tests and benchmarks."""

from __future__ import annotations

import librosa
import numpy as np
import pyarrow as pa

from songray.audio.spectrograms import Spec
from songray.audio.transform import TransformConfig, transform
from songray.errors import SongrayError, songray_error
from songray.library import Library


def librosa_reference(samples: np.ndarray, spec: Spec) -> np.ndarray:
    """librosa's own, (frames, bins)."""
    common = {"sr": spec.rate, "n_fft": spec.n_fft, "hop_length": spec.hop_length}
    if spec.n_chroma:
        return librosa.feature.chroma_stft(y=samples, n_chroma=spec.n_chroma, tuning=0.0, **common).T
    if not spec.n_mels:
        amplitudes = np.abs(librosa.stft(samples, n_fft=spec.n_fft, hop_length=spec.hop_length))
        return librosa.amplitude_to_db(amplitudes, ref=np.max, top_db=80).T
    power = librosa.feature.melspectrogram(y=samples, n_mels=spec.n_mels, fmax=spec.fmax, **common)
    if spec.gain:
        return np.log10(spec.gain * power + 1).T
    decibels = librosa.power_to_db(power, ref=np.max, top_db=80)
    return librosa.feature.mfcc(S=decibels, n_mfcc=spec.n_mfcc).T if spec.n_mfcc else decibels.T


def previews(*sounds: bytes | str) -> pa.Table:
    rows = [
        {"track_key": number, "track_id": str(number)}
        | (
            {"audio": sound, "location": None}
            if isinstance(sound, bytes)
            else {"audio": None, "location": sound}
        )
        for number, sound in enumerate(sounds)
    ]
    return pa.Table.from_pylist(rows)


def add_previews(library: Library, sounds: list[bytes], numbers: list[int] | None = None) -> None:
    """A file of previews of the tracks "a:<number>", by default counted from 0."""
    rows = [
        {"track_key": number << 8, "track_id": f"a:{number}", "audio": sound}
        for number, sound in zip(numbers or range(len(sounds)), sounds, strict=True)
    ]
    table = library.table("previews")
    table.append(pa.Table.from_pylist(rows, table.schema()), "first")


def transform_error(library: Library) -> SongrayError | None:
    """The error that the stage transform ends with, in files of 16 tracks; None where it succeeds."""
    try:
        transform(library, TransformConfig(rows_per_file=16))
    except Exception as error:
        return songray_error(error)
    return None
