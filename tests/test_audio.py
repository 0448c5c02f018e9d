from __future__ import annotations

import io
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import tone

from songray.audio import AudioError, Excerpt, decode


def pitch(samples: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def encode_m4a(path: Path, seconds: float, hertz: float) -> Path:
    sound = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * 44100)) / 44100)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for start in range(0, len(sound), 1024):
            piece = sound[None, start : start + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, "fltp", "mono")
            frame.rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "wav", "aiff", "m4a"])
def test_formats_decode_to_the_same_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode_m4a(path, 3, 440) if suffix == "m4a" else tone(path, 3, 440, 44100)
    for sound in (path.read_bytes(), str(path)):
        samples = decode(sound, 22050, Excerpt())
        assert samples.dtype == np.float32
        assert len(samples) / 22050 == pytest.approx(3, abs=0.15)
        assert pitch(samples, 22050) == pytest.approx(440, abs=2)


def test_the_excerpt_comes_from_the_middle(tmp_path: Path) -> None:
    rate = 22050
    hertz = np.repeat([200.0, 400.0, 600.0], 10 * rate)
    path = tmp_path / "steps.flac"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / rate), rate)
    samples = decode(str(path), rate, Excerpt(seconds=5))
    assert len(samples) == 5 * rate
    assert pitch(samples, rate) == pytest.approx(400, abs=1)


def test_channels_are_mixed(tmp_path: Path) -> None:
    wave = 0.2 * np.sin(np.arange(44100) / 10)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([wave, 3 * wave], axis=1), 22050, subtype="FLOAT")
    assert np.allclose(decode(str(path), 22050, Excerpt()), 2 * wave, atol=1e-6)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 22050, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "sound"),
    [
        ("empty", b""),
        ("not_audio", b"<html>not found</html>" * 50),
        ("too_short", wav(np.sin(np.arange(2000)))),
        ("silent", wav(np.zeros(44100))),
        ("not_finite", wav(np.full(44100, np.nan))),
        ("missing", "/nowhere/song.mp3"),
    ],
)
def test_what_cannot_be_used_has_a_class(kind: str, sound: bytes | str) -> None:
    with pytest.raises(AudioError) as caught:
        decode(sound, 22050, Excerpt())
    assert caught.value.kind == kind


def test_a_truncated_file_is_decoded_as_far_as_it_goes(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "brahms_hungarian5_0.mp3").read_bytes()
    samples = decode(whole[: len(whole) // 2], 22050, Excerpt())
    assert 10 < len(samples) / 22050 < 20
    wrong = tmp_path / "wrong.wav"
    shutil.copyfile(clips / "brahms_hungarian5_0.mp3", wrong)
    assert np.array_equal(decode(str(wrong), 22050, Excerpt()), decode(whole, 22050, Excerpt()))
