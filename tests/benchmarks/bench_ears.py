"""Decoding and spectrograms: against librosa clip by clip, where the time goes, and as a Ray Data stage.

The loops take turns at each clip, with one thread; each clip's best of ROUNDS rounds counts, in seconds of
processor time, since a machine that is shared only ever adds. `CLIPS` scales the stage.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
import soxr
import threadpoolctl
from samples import librosa_reference, previews
from tabulate import tabulate

from songray.audio.decode import Excerpt, read
from songray.audio.transform import SPECS, TransformConfig, compute, quantise, transform, transform_batch
from songray.command import LOCAL_LOGICAL_CPUS
from songray.library import TABLES, Library, track_key

ROUNDS = 3
STAGE_CLIPS = int(os.environ.get("CLIPS", 2000))
FOUR = ("mel128", "linear257", "mel128-8k", "mel96")
MEL = SPECS["mel128"]

pytestmark = pytest.mark.timeout(0)


def librosa_loop(sound: str) -> np.ndarray:
    samples, _ = librosa.load(sound, sr=22050, mono=True)
    power = librosa.feature.melspectrogram(y=samples, sr=22050, n_fft=2048, hop_length=512, n_mels=128)
    return librosa.power_to_db(power, ref=np.max, top_db=80)


def milliseconds(steps: dict[str, Callable[[str], object]], sounds: list[str]) -> dict[str, float]:
    """Of each step a clip: the steps take turns at each clip, and the best round of each clip counts."""
    spent = np.empty((ROUNDS, len(sounds), len(steps)))
    with threadpoolctl.threadpool_limits(1):
        for step in steps.values():
            step(sounds[0])
        for turn in np.ndindex(ROUNDS, len(sounds)):
            for place, step in enumerate(steps.values()):
                started = time.process_time()
                step(sounds[turn[1]])
                spent[*turn, place] = time.process_time() - started
    return dict(zip(steps, 1000 * spent.min(axis=0).mean(axis=0), strict=True))


def ours(*specs: str) -> Callable[[str], object]:
    def rows(sound: str) -> object:
        return transform_batch(previews(sound), TransformConfig(specs=specs))

    return rows


def real(clips: Path) -> list[str]:
    return [str(path) for path in sorted(clips.glob("*.mp3"))]


def table(title: str, head: list[str], rows: list[list[object]]) -> None:
    print(f"\n{title}\n\n{tabulate(rows, head, tablefmt='github', floatfmt='.2f')}")


def test_clips_a_second(clips: Path) -> None:
    spent = milliseconds(
        {"librosa": librosa_loop, "mel128": ours("mel128"), "four": ours(*FOUR)}, real(clips)
    )
    rows = [
        ["librosa.load, melspectrogram, power_to_db", spent["librosa"], 1.0],
        ["ours, a row of mel128", spent["mel128"], spent["librosa"] / spent["mel128"]],
        [f"ours, a row of {', '.join(FOUR)}", spent["four"], spent["librosa"] / spent["four"]],
    ]
    table("51 clips of 30 s, one core", ["", "ms a clip", "times librosa's speed"], rows)
    print(f"\nfour specs cost {spent['four'] / spent['mel128']:.2f} times what mel128 alone costs")


def test_where_the_time_goes(clips: Path) -> None:
    kept: dict[str, object] = {}

    def keep(name: str, value: object) -> object:
        kept[name] = value
        return value

    def decoded(sound: str) -> object:
        with soundfile.SoundFile(sound) as file:
            return file.read(dtype="float32")

    steps: dict[str, Callable[[str], object]] = {
        "decode (soundfile alone)": decoded,
        "decode and mix": lambda sound: keep("recording", read(sound, Excerpt())),
        "resample": lambda _: keep("samples", kept["recording"].resampled(22050)),
        "spectrogram": lambda _: keep("plane", compute(kept["samples"], ["mel128"])["mel128"]),
        "encode": lambda _: quantise(kept["plane"], MEL).tobytes(),
    }
    spent = milliseconds(steps, real(clips))
    decode = spent.pop("decode (soundfile alone)")
    whole = sum(spent.values())
    parts = {"decode": decode, "mix": spent.pop("decode and mix") - decode, **spent, "whole": whole}
    table(
        "Where the time goes",
        ["step", "ms a clip", "share"],
        [[n, ms, ms / whole] for n, ms in parts.items()],
    )


def test_what_a_cheaper_resampler_would_cost(clips: Path) -> None:
    rows = []
    recordings = [read(sound, Excerpt()) for sound in real(clips)[::5]]
    expected = [librosa_reference(recording.resampled(22050), MEL) for recording in recordings]
    for quality in ("VHQ", "HQ", "MQ", "LQ", "QQ"):
        started = time.process_time()
        resampled = [soxr.resample(one.samples, one.rate, 22050, quality=quality) for one in recordings]
        spent = (time.process_time() - started) * 1000 / len(recordings)
        errors = [
            np.abs(compute(samples, ["mel128"])["mel128"] - plane)
            for samples, plane in zip(resampled, expected, strict=True)
        ]
        rows.append([quality, spent, np.mean(errors), np.max(errors)])
    table("soxr", ["quality", "ms a clip", "mean error of mel128, dB against HQ", "largest"], rows)


def loop_rate(sounds: list[str]) -> float:
    """Clips a second of one core's loop, by the clock: what the stage's rate is measured by, too."""
    work = ours("mel128")
    with threadpoolctl.threadpool_limits(1):
        work(sounds[0])
        started = time.monotonic()
        for sound in sounds:
            work(sound)
    return len(sounds) / (time.monotonic() - started)


def finishing_rate(library: Library) -> float:
    """Clips a second from the moment when the first file was finished to the last."""
    files = library.table("spectrograms", "default").files()
    ended = sorted((Path(path).stat().st_mtime, pq.read_metadata(path).num_rows) for path in files)
    return sum(rows for _, rows in ended[1:]) / (ended[-1][0] - ended[0][0])


class Usage:
    """Of all of Ray's processes: peak memory of the largest worker and of the object store, in MB; and the
    seconds of processor time that they spent."""

    def __enter__(self) -> Usage:
        self.worker = self.store = 0.0
        self.spent: dict[int, float] = {}
        self.look()
        self.before = dict(self.spent)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.ended.wait(0.25):
            self.look()

    def look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times, own = process.cpu_times(), process.memory_info()
                self.spent[process.pid] = times.user + times.system
                if process.name().startswith("ray::"):
                    self.worker = max(self.worker, (own.rss - own.shared) / 2**20)
        size = ray.cluster_resources()["object_store_memory"]
        left = ray.available_resources().get("object_store_memory", 0.0)
        self.store = max(self.store, (size - left) / 2**20)


def test_the_stage_on_two_cores(clips: Path, tmp_path: Path) -> None:
    """The speed between the first and the last file that the stage finishes: starting is not counted. The
    loop runs right before and right after it."""
    sounds = [Path(path).read_bytes() for path in real(clips)]
    cpus = LOCAL_LOGICAL_CPUS  # as jobs start it: reading and sorting take some of them
    ray.init(
        "local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30
    )
    ray.data.DataContext.get_current().print_on_execution_start = False
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows: list[list[object]] = []
    seconds = []
    try:
        for count in (STAGE_CLIPS // 4, STAGE_CLIPS):
            library = Library.open(str(tmp_path / str(count)))
            for first in range(0, count, 100):
                places = range(first, min(first + 100, count))
                part = [
                    {"track_key": track_key(str(n), 0), "track_id": str(n), "audio": sounds[n % len(sounds)]}
                    for n in places
                ]
                schema = pa.schema(TABLES["previews"].columns)
                library.table("previews").append(pa.Table.from_pylist(part, schema), f"{first:06}")
            loops = [loop_rate(real(clips))]
            with Usage() as usage:
                summary = transform(library, TransformConfig(rows_per_file=64))
            assert summary.done == count
            loops.append(loop_rate(real(clips)))
            rate, loop = finishing_rate(library), float(np.mean(loops))
            seconds.append(sum(usage.spent.values()) - sum(usage.before.values()))
            rows.append([count, loop, rate, rate / loop, usage.worker, usage.store])
    finally:
        ray.shutdown()
    head = ["clips", "loop's/s", "stage's/s", "ratio", "largest worker, MB", "object store, MB"]
    further = 1000 * (seconds[1] - seconds[0]) / (STAGE_CLIPS - STAGE_CLIPS // 4)
    print(f"\na further clip: {further:.1f} ms of processor time")
    table("Ray Data on 2 cores, against a loop on one", head, rows)
