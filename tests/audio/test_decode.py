from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import tone
from hypothesis import given
from hypothesis import strategies as st

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.errors import AudioError


def pitch(samples: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def encode(
    path: Path, seconds: float, hertz: float, codec: str = "aac", rate: int = 44100, layout: str = "mono"
) -> Path:
    """A sine in all channels, by FFmpeg."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        into = av.AudioResampler(stream.format.name, layout, rate)
        for start in range(0, round(seconds * rate), 1024):
            time = np.arange(start, min(start + 1024, round(seconds * rate))) / rate
            piece = np.repeat(0.3 * np.sin(2 * np.pi * hertz * time), len(stream.layout.channels))
            frame = av.AudioFrame.from_ndarray(piece[None].astype(np.float32), "flt", layout)
            frame.rate, frame.pts = rate, start
            for fitting in into.resample(frame):
                container.mux(stream.encode(fitting))
        container.mux(stream.encode(None))
    return path


BY_FFMPEG = {"m4a": "aac", "opus": "libopus", "webm": "libopus", "aac": "aac"}


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "wav", "aiff", *BY_FFMPEG])
def test_formats_decode_to_the_same_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix in BY_FFMPEG:
        encode(path, 3, 440, BY_FFMPEG[suffix], 48000 if "opus" in BY_FFMPEG[suffix] else 44100)
    else:
        tone(path, 3, 440, 44100)
    for sound in (path.read_bytes(), str(path), str(shutil.copy(path, tmp_path / "wrong.raw"))):
        samples = decode(sound, Excerpt()).resampled(22050)
        assert samples.dtype == np.float32
        assert len(samples) / 22050 == pytest.approx(3, abs=0.15)
        assert pitch(samples, 22050) == pytest.approx(440, abs=2)


def test_the_excerpt_comes_from_the_middle(tmp_path: Path) -> None:
    rate = 22050
    hertz = np.repeat([200.0, 400.0, 600.0], 10 * rate)
    path = tmp_path / "steps.flac"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / rate), rate)
    samples = decode(str(path), Excerpt(seconds=5)).resampled(rate)
    assert len(samples) == 5 * rate
    assert pitch(samples, rate) == pytest.approx(400, abs=1)


def steps(seconds: float, rate: int, block_seconds: float = 10) -> Iterator[np.ndarray]:
    """A sound whose frequency tells the time: 200 Hz, and 1 Hz more each 10 s."""
    for first in np.arange(0, seconds, block_seconds):
        time = np.arange(round(block_seconds * rate)) / rate
        yield 0.3 * np.sin(2 * np.pi * (200 + first / 10) * time)


@pytest.mark.parametrize("suffix", ["flac", "mp3", "wav", "ogg", "m4a"])
def test_an_excerpt_is_found_by_seeking(tmp_path: Path, suffix: str) -> None:
    rate, path = 8000, tmp_path / f"long.{suffix}"
    written = tmp_path / "long.wav" if suffix == "m4a" else path
    with soundfile.SoundFile(written, "w", rate, 1) as file:
        for block in steps(300, rate):
            file.write(block)
    if suffix == "m4a":
        with av.open(str(written)) as source, av.open(str(path), "w") as target:
            stream = target.add_stream("aac", rate=rate, layout="mono")
            for frame in source.decode(audio=0):
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    for at in ("middle", "start", "spread:3"):
        excerpt = Excerpt(6, at)
        samples = decode(str(path), excerpt).resampled(rate)
        assert samples.size == pytest.approx(6 * rate, abs=rate / 10)
        for place, (start, seconds) in enumerate(excerpt.pieces(300)):
            piece = samples[round(place * seconds * rate) :][: round(seconds * rate * 0.9)]
            expected = {200 + int(start / 10), 200 + int((start + seconds) / 10)}
            assert min(abs(pitch(piece, rate) - hertz) for hertz in expected) < 0.7, at


@given(
    seconds=st.floats(0.5, 1e4),
    at=st.one_of(st.sampled_from(["middle", "start"]), st.integers(1, 50).map("spread:{}".format)),
    total=st.floats(0, 1e5),
)
def test_pieces_follow_each_other_within_the_recording(seconds: float, at: str, total: float) -> None:
    pieces = Excerpt(seconds, at).pieces(total)
    assert sum(length for _, length in pieces) == pytest.approx(min(seconds, total))
    ends = [0.0, *(start + length for start, length in pieces)]
    starts = [*(start for start, _ in pieces), total]
    assert all(end <= start + 1e-6 * total for end, start in zip(ends, starts, strict=True))


@pytest.mark.parametrize("at", ["end", "spread", "spread:0", "spread:-1", "spread:x"])
def test_places_that_there_are_not_are_refused(at: str) -> None:
    with pytest.raises(ValueError, match="choose middle, start or spread:n"):
        Excerpt(at=at)


@pytest.mark.slow
def test_two_hours_need_the_memory_of_their_excerpt(clips: Path, tmp_path: Path) -> None:
    """In a process of its own, with all that a worker of the stage loads; MB are of the whole process."""
    clip = (clips / "brahms_hungarian5_0.mp3").read_bytes()
    frames = clip[clip.index(b"\xff\xfb", 400) :]  # without the first, which would tell the length of one
    (tmp_path / "long.mp3").write_bytes(frames * 240)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 44100, 2) as file:
        for block in steps(7200, 44100):
            file.write(np.stack([block, block], axis=1))
    code = """
import pathlib, re, sys
from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.transform import compute
for path in sys.argv[1:]:
    for at in ("middle", "spread:4"):
        recording = decode(path, Excerpt(30, at))
        planes = compute(recording.resampled(22050), ["mel128", "linear257", "mel128-8k", "mel96"])
        print(len(recording.samples) / recording.rate)
print(int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024)
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "long.mp3"), str(tmp_path / "long.flac")]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    *seconds, megabytes = map(float, output.split())
    assert seconds == pytest.approx([30] * 4, abs=0.2)
    print(f"{megabytes:.0f} MB")
    assert megabytes < 400


def test_channels_are_mixed(tmp_path: Path) -> None:
    wave = 0.2 * np.sin(np.arange(44100) / 10)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([wave, 3 * wave], axis=1), 22050, subtype="FLOAT")
    assert np.allclose(decode(str(path), Excerpt()).resampled(22050), 2 * wave, atol=1e-6)


@pytest.mark.parametrize("layout", ["5.1", "7.1"])
def test_surround_sound_is_mixed(tmp_path: Path, layout: str) -> None:
    path = encode(tmp_path / "a.m4a", 2, 440, layout=layout)
    assert pitch(decode(str(path), Excerpt()).resampled(22050), 22050) == pytest.approx(440, abs=2)


def wav(samples: np.ndarray, rate: int = 22050) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "sound"),
    [
        ("empty", b""),
        ("not_audio", b"<html>not found</html>" * 50),
        ("too_short", wav(np.sin(np.arange(2000)))),
        ("silent", wav(np.zeros(44100))),
        ("silent", wav(np.full(44100, 0.25))),  # an offset, and nothing else
        ("silent", wav(np.hanning(99999) * np.sin(np.arange(99999) * 2.5), 48000)),  # 19 kHz are not kept
        ("not_finite", wav(np.full(44100, np.nan))),
        ("not_finite", wav(np.r_[np.sin(np.arange(44100)), np.inf])),
        ("not_finite", wav(1e20 * np.sin(np.arange(44100)))),
        ("not_audio", wav(np.sin(np.arange(44100)), 10)),  # Hz
        ("missing", "/nowhere/song.mp3"),
        ("missing", "/"),
    ],
)
def test_what_cannot_be_used_has_a_class(kind: str, sound: bytes | str) -> None:
    with pytest.raises(AudioError) as caught:
        decode(sound, Excerpt()).resampled(16000)
    assert caught.value.kind == kind


def test_a_truncated_file_is_decoded_as_far_as_it_goes(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "brahms_hungarian5_0.mp3").read_bytes()
    samples = decode(whole[: len(whole) // 2], Excerpt()).resampled(22050)
    assert 10 < len(samples) / 22050 < 20
    wrong = tmp_path / "wrong.wav"
    shutil.copyfile(clips / "brahms_hungarian5_0.mp3", wrong)
    assert np.array_equal(
        decode(str(wrong), Excerpt()).resampled(22050), decode(whole, Excerpt()).resampled(22050)
    )


def test_what_a_file_announces_and_does_not_hold_is_told(clips: Path) -> None:
    whole = (clips / "brahms_hungarian5_0.mp3").read_bytes()
    assert decode(whole, Excerpt()).missing_seconds == 0
    half = decode(whole[: len(whole) // 2], Excerpt())
    assert half.missing_seconds == pytest.approx(30 - len(half.samples) / half.rate, abs=1e-3)
    third = decode(whole[: len(whole) // 3], Excerpt(5))  # its middle is not there: the start will do
    assert len(third.samples) / third.rate == 5


def test_an_mp3_that_does_not_tell_its_length_is_read_to_its_end() -> None:
    """Of a variable bit rate: libsndfile takes it to be as long as its first frames let it guess."""
    rate, file = 44100, io.BytesIO()
    time = np.arange(60 * rate) / rate
    quiet_first = np.sin(2 * np.pi * (200 + 2 * time) * time) * np.linspace(0, 0.5, time.size)
    soundfile.write(file, quiet_first, rate, format="MP3", bitrate_mode="VARIABLE")
    sound = file.getvalue()
    headless = sound[sound.index(b"\xff\xfb", 4) :]
    assert soundfile.info(io.BytesIO(headless)).duration < 50
    assert len(decode(headless, Excerpt(100)).resampled(rate)) / rate == pytest.approx(60, abs=0.2)
    tagged = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)  # and 128 bytes of nothing
    for prefix in (tagged, bytes(5000)):
        assert len(decode(prefix + sound, Excerpt(100)).resampled(rate)) / rate == pytest.approx(60, abs=0.2)


def test_a_broken_part_costs_only_itself(clips: Path) -> None:
    whole = (clips / "brahms_hungarian5_0.mp3").read_bytes()
    broken = whole[:100_000] + bytes(50_000) + whole[150_000:]
    assert len(decode(broken, Excerpt()).resampled(22050)) / 22050 > 25
    noise = np.random.default_rng(0).bytes(30_000)
    assert len(decode(noise + whole, Excerpt()).resampled(22050)) / 22050 > 25


def test_nothing_that_a_file_refers_to_is_opened(tmp_path: Path, serve_folder: Callable[[Path], str]) -> None:
    path = tone(tmp_path / "a.mp3")
    for target in (f"{serve_folder(tmp_path)}/a.mp3", str(path)):
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n"
        with pytest.raises(AudioError, match="neither"):
            decode(playlist.encode(), Excerpt()).resampled(22050)
