from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import CLIPS, tone
from hypothesis import example, given
from hypothesis import strategies as st

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.fetch import is_audio
from songray.catalogue.sources.folder import sound_hash
from songray.errors import AudioError
from songray.service.decoding import duration_seconds


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


def encode_aac(written: Path, path: Path, rate: int, layout: str) -> None:
    with av.open(str(written)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("aac", rate=rate, layout=layout)
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


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
    samples = decode(str(path), Excerpt(5, "middle")).resampled(rate)
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
        encode_aac(written, path, rate, "mono")
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


def test_pieces_that_nearly_touch_are_one() -> None:
    """A preview of a little more than 30 s is not cut and joined."""
    assert Excerpt(30, "spread:5").pieces(31) == [(0.5, 30.0)]
    assert len(Excerpt(30, "spread:5").pieces(34)) == 5


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
from songray.audio.spectrograms import compute
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
    for at in ("middle", "spread:5"):  # most of which is not there: the start has more
        third = decode(whole[: len(whole) // 3], Excerpt(5, at))
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


ODD = CLIPS.parent / "odd"
ASF = bytes.fromhex("3026B2758E66CF11A6D900AA0062CE6C")  # the start of a WMA file
FAR_OBJECT = ASF + struct.pack("<QIBB16xQ", 54, 1, 1, 2, 1 << 62) + bytes(2000)  # beyond any position


def assert_not_audio(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for sound in (str(path), path.read_bytes()):
        with pytest.raises(
            AudioError, match=r"\Aneither soundfile nor FFmpeg can decode it: \w.+\Z"
        ) as caught:
            decode(sound, Excerpt())
        assert caught.value.kind == "not_audio"
    assert capfd.readouterr() == ("", "")


def test_a_position_that_a_damaged_header_asks_for_is_no_error_of_the_storage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wma").write_bytes(FAR_OBJECT)
    assert_not_audio(tmp_path / "a.wma", capfd)


@pytest.mark.skipif(not ODD.is_dir(), reason=f"no odd files at {ODD}")
@pytest.mark.parametrize("name", ["test_rsrc_full.wma", "test_rsrc_pure.wma"])
def test_files_that_no_decoder_reads_are_not_audio(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert_not_audio(ODD / name, capfd)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file whose bytes cannot be read")
def test_an_error_of_the_storage_while_a_decoder_reads_is_retryable(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first page of a process's memory, which no process has: reading it is an I/O error."""
    with pytest.raises(AudioError, match="/proc/self/mem cannot be read: Input/output error") as caught:
        decode("/proc/self/mem", Excerpt())
    assert caught.value.kind == "missing"
    assert capfd.readouterr() == ("", "")


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp3")
    with pytest.raises(AudioError, match=r"a\.mp3 is not a file") as caught:
        decode(str(tmp_path / "a.mp3"), Excerpt())
    assert caught.value.kind == "missing"


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg", "m4a"])
@pytest.mark.parametrize("first", [1.0, -1.0])
def test_of_channels_that_cancel_each_other_one_is_used(tmp_path: Path, suffix: str, first: float) -> None:
    rate, path = 44100, tmp_path / f"inverted.{suffix}"
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)
    written = tmp_path / "inverted.flac"
    soundfile.write(
        written if suffix == "m4a" else path, np.stack([first * wave, -first * wave], axis=1), rate
    )
    if suffix == "m4a":
        encode_aac(written, path, rate, "stereo")
    for sound in (str(path), path.read_bytes()):
        samples = decode(sound, Excerpt()).resampled(rate)
        assert pitch(samples, rate) == pytest.approx(440, abs=2)
        assert np.abs(samples[rate : 2 * rate]).max() == pytest.approx(0.3, rel=0.1)


@given(angle=st.floats(-np.pi, np.pi), seed=st.integers(0, 9))
@example(angle=np.pi, seed=0)
def test_channels_that_do_not_cancel_are_mixed(angle: float, seed: int) -> None:
    """Two channels of any correlation: only where their mean is 30 dB below them is one of them used."""
    first, other = np.random.default_rng(seed).normal(0, 0.1, (2, 22050))
    second = np.cos(angle) * first + np.sin(angle) * other
    samples = decode(wav(np.stack([first, second], axis=1)), Excerpt()).samples
    mean = (first + second) / 2
    has_cancelled = np.square(mean).sum() < 1e-3 * (np.square(first).sum() + np.square(second).sum()) / 4
    assert np.allclose(samples, first if has_cancelled else mean, atol=1e-6)


REFERRING = {
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="audio/mpeg"><Representation id="1" '
    'bandwidth="9"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "concat": "ffconcat version 1.0\nfile {url}\n",
    "wpl": '<?wpl version="1.0"?><smil><body><seq><media src="{url}"/></seq></body></smil>',
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
}
OPENERS: dict[str, Callable[[Path], object]] = {
    "is_audio": lambda path: is_audio(path.read_bytes()),
    "decode bytes": lambda path: kind_of_error(path.read_bytes()),
    "decode a file": lambda path: kind_of_error(str(path)),
    "hash": lambda path: sound_hash(path),
    "duration": lambda path: duration_seconds(path.read_bytes()),
}


def kind_of_error(sound: bytes | str) -> str:
    with pytest.raises(AudioError) as caught:
        decode(sound, Excerpt())
    return caught.value.kind


@pytest.mark.parametrize("form", REFERRING)
@pytest.mark.parametrize("opener", OPENERS)
def test_nothing_that_a_file_refers_to_is_opened(tmp_path: Path, form: str, opener: str) -> None:
    """Neither an address nor a port nor a file, by whatever opens encoded audio. An SDP would open a UDP port
    and wait for packets for seconds; opening a named pipe would wait for ever."""
    expected = {"is_audio": False, "duration": 0.0, "decode bytes": "not_audio", "decode a file": "not_audio"}
    tone(tmp_path / "real.mp3")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        before = udp_ports()
        for url in (f"http://127.0.0.1:{port}/a.mp3", str(tmp_path / "real.mp3"), "real.mp3"):
            path = tmp_path / f"a.{form}.mp3"
            path.write_text(REFERRING[form].format(url=url))
            with ThreadPoolExecutor(1) as pool:
                result = pool.submit(OPENERS[opener], path)
                while not result.done():
                    assert udp_ports() <= before
                    time.sleep(0.002)
            assert result.result() == expected.get(opener, hashed(path))
            with pytest.raises(BlockingIOError):
                listener.accept()


def hashed(path: Path) -> str:
    """The id of a file that contains no audio."""
    return hashlib.blake2b(path.read_bytes(), digest_size=10).hexdigest()


def udp_ports() -> set[str]:
    return {line.split()[1] for line in Path("/proc/net/udp").read_text().splitlines()}
