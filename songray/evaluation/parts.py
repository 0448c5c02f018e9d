"""The parts of a report: figures, tables, and sounds that are played in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from songray.audio.spectrograms import SPECS, Spec, compute
from songray.evaluation import figures
from songray.evaluation.material import Material, title
from songray.evaluation.robustness import as_mp3
from songray.evaluation.scores import Facts, fact_text

SOUND_BITS = 64_000
GRIFFIN_LIM_ITERATIONS = 32


@dataclass(frozen=True)
class Figure:
    title: str
    svg: str
    caption: str = ""
    legend: Sequence[str] = ()  # names of the colors, in their order
    sounds: Mapping[str, str] = field(default_factory=dict)  # data URIs of MP3s, by name


@dataclass(frozen=True)
class Table:
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @classmethod
    def of_facts(cls, name: str, by_run: Mapping[str, Facts], caption: str = "") -> Table:
        heads = list(dict.fromkeys(head for facts in by_run.values() for head in facts))
        rows = [[run, *(fact_text(facts.get(head, "")) for head in heads)] for run, facts in by_run.items()]
        return cls(name, ["run", *heads], rows, caption)


def listed(material: Material, positions: Sequence[int] | NDArray[np.int64]) -> str:
    return "; ".join(title(material.rows[int(position)]) for position in positions)


def reconstruction(material: Material, run: str | None, model: str) -> Figure | str:
    """A window of a track beside what a run's model decodes from its vector, and both as sound."""
    import torch

    if run is None:
        return f"Input beside its reconstruction: no run of {model} is compared"
    windows = material.windows(run, 0)
    network = material.encoder(run).model
    if windows is None or not network.has_decoder:
        return f"Input beside its reconstruction: no spectrogram or no decoder of {run}"
    middle = windows[len(windows) // 2 : len(windows) // 2 + 1]
    with torch.inference_mode():
        decoded = network.reconstruct(torch.from_numpy(middle)).numpy()[0]
    planes = {"input": middle[0], "reconstruction": decoded}
    error = float(((decoded - middle[0]) ** 2).mean() / max(float(middle[0].var()), 1e-12))
    sounds = {name: _audible(plane, SPECS[network.spec]) for name, plane in planes.items()}
    caption = f"{title(material.rows[0])}; {error:.2f} of the variance of this window is unexplained."
    return Figure(
        f"A window and its reconstruction, {run}", figures.spectrograms(planes), caption, (), sounds
    )


def _audible(plane: NDArray[np.float32], spec: Spec) -> str:
    """A spectrogram in 0…1, (frames, bins), as sound whose phase is estimated (Griffin and Lim, 1984)."""
    import librosa

    from songray.audio.decode import Recording

    low, high = spec.range
    power = librosa.db_to_power(np.clip(plane.T, 0, 1) * (high - low) + low)
    if spec.n_mels:
        magnitude = librosa.feature.inverse.mel_to_stft(
            power, sr=spec.rate, n_fft=spec.n_fft, power=2.0, fmax=spec.fmax or spec.rate / 2
        )
    else:
        magnitude = np.sqrt(power)
    samples = librosa.griffinlim(
        magnitude, n_iter=GRIFFIN_LIM_ITERATIONS, hop_length=spec.hop_length, random_state=0
    )
    loudest = max(float(np.abs(samples).max()), 1e-9)
    return sound_uri(Recording((samples / loudest * 0.7).astype(np.float32), spec.rate, 0.0))


def sound(material: Material, genres: Sequence[str]) -> Figure | str:
    """Five seconds of a track of each of two genres, as spectrograms and as sound."""
    from songray.audio.decode import Recording

    planes, sounds = {}, {}
    for genre in genres:
        position = material.first_genres.index(genre)
        recording = material.recording(position)
        if recording is None:
            continue
        samples = recording.resampled(22_050)
        part = samples[len(samples) // 2 :][: 5 * 22_050]
        name = f"{title(material.rows[position])} [{genre}]"
        planes[name] = compute(part, ["linear257"])["linear257"]
        sounds[genre] = sound_uri(Recording(part, 22_050, 0.0))
    if len(planes) < 2:
        return "Spectrograms of two pieces: fewer than four genres, or no audio"
    return Figure("Spectrograms of two pieces", figures.spectrograms(planes), "5 s each.", (), sounds)


def sound_uri(recording: Any) -> str:
    return "data:audio/mpeg;base64," + base64.b64encode(as_mp3(recording, SOUND_BITS)).decode()
