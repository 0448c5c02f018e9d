"""Files that browsers do not play, as MP3: of real files, by PyAV, and few at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from serving import LocalService, local_service, problem, shared_library

from songray.catalogue.sources.base import AudioLocation
from songray.library import Library, Row
from songray.service import transcode as module
from songray.service.options import IngressConfig
from songray.service.transcode import Transcoder, transcode


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


def aiff(path: Path, seconds: float = 2.0, hertz: float = 440.0) -> Path:
    time = np.arange(int(48_000 * seconds)) / 48_000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * time), 48_000)
    return path


def test_the_sound_stays_the_same(tmp_path: Path) -> None:
    transcode(str(aiff(tmp_path / "a.aiff")), tmp_path / "a.mp3")
    samples, rate = soundfile.read(tmp_path / "a.mp3")
    assert rate == 44_100 and samples.shape[1] == 2 and len(samples) / rate == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(samples[4410:48_510, 0]))
    assert spectrum.argmax() == pytest.approx(440, abs=1)


def test_a_file_is_transcoded_once_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(source: str, destination: Path) -> None:
        calls.append(source)
        transcode(source, destination)

    monkeypatch.setattr(module, "transcode", counted)
    monkeypatch.setattr(module, "KEPT_FILES", 2)
    files = [str(aiff(tmp_path / f"{number}.aiff", 0.2)) for number in range(4)]

    async def requests() -> list[Path]:
        transcoder = Transcoder()
        await asyncio.gather(*(transcoder.file(files[0]) for _ in range(5)))
        paths = [await transcoder.file(path) for path in files]
        return [path for path in paths if path.exists()]

    assert len(asyncio.run(requests())) == 2
    assert calls == files


def test_a_file_that_browsers_do_not_play_is_streamed_by_ranges(
    indexed: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playable, broken = aiff(tmp_path / "a.aiff"), tmp_path / "b.wma"
    broken.write_bytes(b"no audio")
    files = {"t:3": playable, "t:6": broken, "t:9": tmp_path / "gone.ape"}

    async def locate(service: LocalService, track: Row) -> AudioLocation:
        return AudioLocation(str(files[track["track_id"]]))

    monkeypatch.setattr(LocalService, "locate", locate)
    with local_service(indexed, IngressConfig()) as url:
        whole = httpx.get(f"{url}/audio/t:3")
        assert (whole.status_code, whole.headers["content-type"]) == (200, "audio/mpeg")
        part = httpx.get(f"{url}/audio/t:3", headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, whole.content[100:200])
        status, detail = problem(httpx.get(f"{url}/audio/t:6"))
        assert status == 415 and detail.startswith("the file of t:6 cannot be decoded:")
        assert str(tmp_path) not in detail
        status, detail = problem(httpx.get(f"{url}/audio/t:9"))
        assert status == 404 and "run `songray crawl folder` again" in detail
