from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pytest
from conftest import tone

from songray.audio import Excerpt, decode
from songray.spectrograms import SPECS, compute, quantise, stored, transform_batch

SPEC = SPECS["mel128"]


def reference(samples: np.ndarray) -> np.ndarray:
    power = librosa.feature.melspectrogram(y=samples, sr=22050, n_fft=2048, hop_length=512, n_mels=128)
    return librosa.power_to_db(power, ref=np.max, top_db=80).T


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


def test_a_spectrogram_is_what_librosa_makes_of_the_clip(clips: Path) -> None:
    path = clips / "joth_party_0.mp3"
    expected = reference(librosa.load(path, sr=22050, mono=True)[0])
    found = compute(decode(str(path), 22050, Excerpt()), SPEC)
    assert found.shape == expected.shape == (1292, 128)
    assert np.abs(found - expected).max() < 0.05


def test_quantising_adds_at_most_half_a_step() -> None:
    decibels = np.linspace(-80, 0, 10001, dtype=np.float32)[:, None]
    back = quantise(decibels) * (80 / 255) - 80
    assert np.abs(back - decibels).max() <= 80 / 255 / 2 + 1e-5


def test_a_row_is_read_back_by_plain_numpy(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", seconds=2)
    (row,) = transform_batch(previews(path.read_bytes()), Excerpt())[0].to_pylist()
    assert row["error"] is None
    assert row["seconds"] == pytest.approx(2)
    cells = np.frombuffer(row["mel128"], np.uint8).reshape(-1, 128)
    assert np.array_equal(cells, stored(row["mel128"], SPEC))
    assert cells.max() == 255  # the loudest bin is 0 dB
    loudest = librosa.mel_frequencies(130, fmin=0, fmax=11025)[1:-1][cells.mean(axis=0).argmax()]
    assert loudest == pytest.approx(440, abs=20)


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
