"""`songray pipeline folder` on different files: seconds until each version is served, and songs a second of
each stage.

The files are parts of equal length of the whole pieces of bench_excerpts, which says where they come from and
how SONGRAY_BENCH_PIECES is filled; they are cut once, as tagged MP3s, into SONGRAY_BENCH_FOLDER. Environment:
SONGRAY_BENCH_FILES, 1000. The bare forward pass of each model is in bench_training.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import mutagen
import numpy as np
import pytest
import soundfile
from bench_excerpts import FOLDER
from bench_pretrained import manifest
from conftest import free_port
from tabulate import tabulate

from songray.library import Row

RATE = 44_100  # Hz
FILES = int(os.environ.get("SONGRAY_BENCH_FILES", "1000"))


def pieces() -> list[Row]:
    """A row of the manifest for each piece, with its path and seconds."""
    if not FOLDER.is_dir():
        pytest.skip(f"no whole pieces at {FOLDER}")
    rows = {row["recording"]: row for row in reversed(manifest())}
    found = []
    for row in rows.values():
        path = FOLDER / row["package"] / row["source"]
        with av.open(str(path)) as container:
            found.append(row | {"path": path, "seconds": container.duration / av.time_base})
    return found


def counts(seconds: np.ndarray) -> np.ndarray:
    """The number of parts of each piece, FILES together, whose lengths differ as little as possible."""
    parts = np.ones(len(seconds), int)
    while parts.sum() < FILES:
        parts[np.argmax(seconds / parts)] += 1
    return parts


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames])


def cut(folder: Path) -> None:
    rows = pieces()
    for row, count in zip(rows, counts(np.array([row["seconds"] for row in rows])), strict=True):
        album = folder / (row["artist"] or "unknown") / row["package"]
        album.mkdir(parents=True, exist_ok=True)
        for number, samples in enumerate(np.array_split(decoded(row["path"]), count)):
            path = album / f"{row['recording']}_{number:02}.mp3"
            soundfile.write(path, samples, RATE)
            tags = mutagen.File(path, easy=True)
            tags["title"], tags["album"] = f"{row['title']} {number}", row["package"]
            if row["artist"]:
                tags["artist"] = row["artist"]
            tags.save()


def run(folder: Path, library: Path) -> list[tuple[float, str]]:
    """The lines that the pipeline prints, each with the seconds since its start."""
    command = (sys.executable, "-m", "songray", "pipeline", "folder", "--folder", str(folder),
               "--library", str(library), "--port", str(free_port()))  # fmt: skip
    started, lines = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - started, line.rstrip()))
            if line.startswith("serving http"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    return lines


def test_pipeline(tmp_path: Path) -> None:
    folder = Path(os.environ.get("SONGRAY_BENCH_FOLDER", tmp_path / "music"))
    if not folder.is_dir():
        cut(folder)
    lines = run(folder, tmp_path / "library")
    served = [
        (after, re.search(r"serve: after \d+ s (\d+) tracks .*, run (\S+)", line)) for after, line in lines
    ]
    versions = [[match[1], match[2], after] for after, match in served if match]
    print(
        f"\n{tabulate(versions, ['tracks served', 'run', 'after, s'], tablefmt='github', floatfmt='.0f')}\n"
    )
    stages = [
        re.match(r"(\w+ ?\S*): .* (\d+) finished now .*\((\S+) s, (\S+)/s\)", line) for _, line in lines
    ]
    rows = [match.groups() for match in stages if match]
    print(tabulate(rows, ["stage", "tracks", "s", "tracks/s"], tablefmt="github"))
    assert versions
