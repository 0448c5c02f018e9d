from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile
from conftest import tone

from songray.audio.extract import Extraction
from songray.service.decoding import decode, memory_limit

CONFIG = Extraction(specs=("mel128",))


def test_what_cannot_be_decoded_has_a_kind_of_error(tmp_path: Path) -> None:
    long = io.BytesIO()
    soundfile.write(long, np.zeros(8000 * 901), 8000, format="FLAC")
    audio = tone(tmp_path / "tone.flac").read_bytes()
    assert decode(audio, CONFIG)[1] == ""
    assert decode(b"no audio at all", CONFIG)[:2] == ({}, "not_audio")
    assert decode(b"", CONFIG)[:2] == ({}, "empty")
    assert decode(audio[:300], CONFIG)[1]
    _, error, detail = decode(long.getvalue(), CONFIG)
    assert error == "too_long" and "15 minutes" in detail


@pytest.mark.parametrize("spec", ["mel128", "chroma12"])
def test_the_first_upload_of_a_process_needs_no_torch_and_fits_in_its_memory(
    tmp_path: Path, spec: str
) -> None:
    """Whatever decoding imports is loaded before the limit applies."""
    path = tone(tmp_path / "tone.flac")
    code = f"""
import sys
from songray.audio.extract import Extraction
from songray.service.decoding import decode
_, error, detail = decode(open({str(path)!r}, "rb").read(), Extraction(specs=({spec!r},)))
print((error, detail), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('', '') False"


def test_the_memory_of_a_decoder_is_limited(cluster: None) -> None:
    def allocate(size_bytes: int) -> int:
        with suppress(MemoryError), memory_limit(1 << 28):
            return bytearray(size_bytes).count(0)
        return 0

    allocated = ray.remote(allocate)
    assert ray.get([allocated.remote(1 << 30), allocated.remote(1 << 20)]) == [0, 1 << 20]


def test_a_decoder_writes_nothing_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libmpg123 remarks on each frame of a damaged file, of which anybody may upload many."""
    audio = bytearray(tone(tmp_path / "tone.mp3").read_bytes())
    audio[len(audio) // 2 : len(audio) // 2 + 2000] = b"\xff\xfb" * 1000
    assert decode(bytes(audio), CONFIG)[1] == ""
    assert capfd.readouterr() == ("", "")
