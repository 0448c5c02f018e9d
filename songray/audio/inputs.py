"""What models take of a recording: spectrograms, which are stored, or its samples, which are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from songray.audio.decode import Recording
from songray.audio.spectrograms import SPECS, WAVEFORM, Input, compute, is_waveform, quantise
from songray.audio.spectrograms import from_bytes as spectrogram_from_bytes


def compute_inputs(recording: Recording, names: Sequence[str]) -> dict[str, bytes]:
    """The spectrograms or samples of a recording, by name: in SPECS, or waveform-RATE. Samples of one rate
    are resampled once. Raises AudioError where they are silent at a rate."""
    cells: dict[str, bytes] = {}
    for rate in {_rate(name) for name in names}:
        sharing = [name for name in names if _rate(name) == rate]
        samples = recording.resampled(rate)
        planes = compute(samples, [name for name in sharing if not is_waveform(name)])
        cells |= {name: quantise(plane, SPECS[name]).tobytes() for name, plane in planes.items()}
        cells |= {name: samples.tobytes() for name in sharing if is_waveform(name)}
    return cells


def _rate(name: str) -> int:
    return int(name.removeprefix(WAVEFORM)) if is_waveform(name) else SPECS[name].rate


def from_bytes(cell: bytes, name: str) -> Input:
    """What compute_inputs returns for a name, as an array without a copy: (frames, bins) or (samples, 1)."""
    if is_waveform(name):
        return np.frombuffer(cell, np.float32)[:, None]
    return spectrogram_from_bytes(cell, SPECS[name])
