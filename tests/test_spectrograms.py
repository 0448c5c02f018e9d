from __future__ import annotations

import warnings
from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pytest
from conftest import tone

from songray.audio import Excerpt, decode
from songray.spectrograms import SPECS, Spec, TransformConfig, compute, quantise, stored, transform_batch


def reference(samples: np.ndarray, spec: Spec) -> np.ndarray:
    """librosa's own, (frames, bins)."""
    common = {"sr": spec.rate, "n_fft": spec.n_fft, "hop_length": spec.hop_length}
    if spec.n_chroma:
        return librosa.feature.chroma_stft(y=samples, n_chroma=spec.n_chroma, tuning=0.0, **common).T
    if not spec.n_mels:
        amplitudes = np.abs(librosa.stft(samples, n_fft=spec.n_fft, hop_length=spec.hop_length))
        return librosa.amplitude_to_db(amplitudes, ref=np.max, top_db=80).T
    power = librosa.feature.melspectrogram(y=samples, n_mels=spec.n_mels, fmax=spec.fmax, **common)
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


TIME = np.arange(3 * 22050) / 22050
NOISE = np.random.default_rng(0).normal(0, 0.1, TIME.size)
SYNTHETIC = {
    "silence": np.zeros(TIME.size),
    "impulse": np.eye(1, TIME.size, 30000)[0],
    "constant": np.full(TIME.size, 0.5),
    "faint tone on an offset": 0.5 + 1e-3 * np.sin(2 * np.pi * 1000 * TIME),
    "full-scale sine": np.sin(2 * np.pi * 1000 * TIME),
    "clipped sine": np.clip(5 * np.sin(2 * np.pi * 100 * TIME), -1, 1),
    "noise that fades away": NOISE * 10 ** (-4 * TIME),
    "shorter than a window": NOISE[:600],
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("sound", SYNTHETIC)
def test_every_spec_is_what_librosa_makes_of_edge_cases(sound: str, name: str) -> None:
    samples, spec = SYNTHETIC[sound].astype(np.float32), SPECS[name]
    with warnings.catch_warnings(action="ignore"):  # librosa warns of short and of empty sounds
        expected = reference(samples, spec)
    found = compute(samples, [name])[name]
    assert found.shape == expected.shape == (1 + samples.size // spec.hop_length, spec.bins)
    assert np.abs(found - expected).max() < 0.05


def test_every_spec_is_what_librosa_makes_of_a_clip(clips: Path) -> None:
    for file in ("joth_party_0.mp3", "brahms_hungarian5_0.mp3", "zhelanov_junk_1.mp3"):
        samples = librosa.load(clips / file, sr=22050, mono=True)[0]
        planes = compute(decode(str(clips / file), 22050, Excerpt()), list(SPECS))
        for name, spec in SPECS.items():
            expected = reference(samples, spec)
            assert planes[name].shape == expected.shape
            assert np.abs(planes[name] - expected).max() < 0.05, (file, name)


@pytest.mark.parametrize("name", SPECS)
def test_storing_adds_at_most_half_a_step(name: str) -> None:
    spec = SPECS[name]
    low, high = spec.range
    values = np.linspace(low, high, 10001, dtype=np.float32)[:, None]
    back = quantise(values, spec) * ((high - low) / 255) + low
    step = (high - low) / 255
    assert np.abs(back - values).max() <= step / 2 * 1.001
    if spec.range == (-80, 0):
        assert step / 2 < 0.157  # dB


@pytest.mark.parametrize("name", SPECS)
def test_nothing_lies_outside_the_range_that_is_stored(name: str) -> None:
    low, high = SPECS[name].range
    for samples in SYNTHETIC.values():
        plane = compute(samples.astype(np.float32), [name])[name]
        assert low - 1e-3 <= plane.min() <= plane.max() <= high + 1e-3


def test_a_row_is_read_back_by_plain_numpy(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", seconds=2)
    (row,) = transform_batch(previews(path.read_bytes()), Excerpt())[0].to_pylist()
    assert row["error"] is None
    assert row["seconds"] == pytest.approx(2)
    assert row["missing_seconds"] == 0
    cells = np.frombuffer(row["mel128"], np.uint8).reshape(-1, 128)
    assert np.array_equal(cells, stored(row["mel128"], SPECS["mel128"]))
    assert cells.max() == 255  # the loudest bin is 0 dB
    loudest = librosa.mel_frequencies(130, fmin=0, fmax=11025)[1:-1][cells.mean(axis=0).argmax()]
    assert loudest == pytest.approx(440, abs=20)


def test_a_set_has_a_column_for_each_of_its_specs(tmp_path: Path) -> None:
    path = str(tone(tmp_path / "a.wav", seconds=5))
    table, _ = transform_batch(previews(path), Excerpt(), ("linear257", "chroma12"))
    assert set(SPECS) & set(table.column_names) == {"linear257", "chroma12"}
    (row,) = table.to_pylist()
    assert stored(row["linear257"], SPECS["linear257"]).shape == (431, 257)
    assert stored(row["chroma12"], SPECS["chroma12"]).shape == (216, 12)
    alone = transform_batch(previews(path), Excerpt(), ("chroma12",))[0]
    assert alone["chroma12"] == table["chroma12"]  # a spec does not depend on its company


@pytest.mark.parametrize("specs", [(), ("mel12",)])
def test_specs_that_there_are_not_are_refused(specs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="choose from mel128, linear257"):
        TransformConfig(specs=specs)


def test_bad_sounds_are_rows_beside_good_ones(tmp_path: Path) -> None:
    good = tone(tmp_path / "a.wav").read_bytes()
    table, again = transform_batch(previews(good, b"", b"noise" * 99, "/nowhere.mp3", good), Excerpt())
    rows = table.to_pylist()
    assert [row["error"] for row in rows] == [None, "empty", "not_audio", None]
    assert [row["track_key"] for row in rows] == [0, 1, 2, 4]
    assert again == ["missing"]  # it may come back
    assert all(row["detail"] for row in rows if row["error"])


def test_odd_recordings_are_decoded(clips: Path) -> None:
    paths = sorted((clips / "odd_inputs").glob("*.ogg"))
    rows = transform_batch(previews(*map(str, paths)), Excerpt())[0].to_pylist()
    assert [row["error"] for row in rows] == [None] * len(paths)
