"""Decoding and spectrograms: beside librosa clip by clip, the share of each step, and as a Ray Data stage.

The loops alternate at each clip, with one thread; of each clip the fastest of ROUNDS rounds counts, in
seconds of processor time, since other programs on the machine can only add to it. Environment: CLIPS, 2000,
of the stage.
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

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.extract import Extraction, extract_batch
from songray.audio.spectrograms import SPECS, compute, quantise
from songray.audio.transform import TransformConfig, transform
from songray.cluster import LOCAL_LOGICAL_CPUS, configure_ray_data
from songray.keys import track_key
from songray.library import Library
from songray.tables import TABLES

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
    """Milliseconds a clip of each step, by the fastest round of each clip; steps alternate at each clip."""
    spent = np.empty((ROUNDS, len(sounds), len(steps)))
    with threadpoolctl.threadpool_limits(1):
        for step in steps.values():
            step(sounds[0])
        for repetition, clip in np.ndindex(ROUNDS, len(sounds)):
            for position, step in enumerate(steps.values()):
                started = time.process_time()
                step(sounds[clip])
                spent[repetition, clip, position] = time.process_time() - started
    return dict(zip(steps, 1000 * spent.min(axis=0).mean(axis=0), strict=True))


def songray_loop(*specs: str) -> Callable[[str], object]:
    def rows(sound: str) -> object:
        return extract_batch(previews(sound), Extraction(specs=specs))

    return rows


def paths(clips: Path) -> list[str]:
    return [str(path) for path in sorted(clips.glob("*.mp3"))]


def table(title: str, head: list[str], rows: list[list[object]]) -> None:
    print(f"\n{title}\n\n{tabulate(rows, head, tablefmt='github', floatfmt='.2f')}")


def test_clips_per_second(clips: Path) -> None:
    spent = milliseconds(
        {"librosa": librosa_loop, "mel128": songray_loop("mel128"), "four": songray_loop(*FOUR)}, paths(clips)
    )
    rows = [
        ["librosa.load, melspectrogram, power_to_db", spent["librosa"], 1.0],
        ["songray, a row of mel128", spent["mel128"], spent["librosa"] / spent["mel128"]],
        [f"songray, a row of {', '.join(FOUR)}", spent["four"], spent["librosa"] / spent["four"]],
    ]
    table("51 clips of 30 s, one core", ["", "ms a clip", "speed relative to librosa"], rows)
    print(f"\nfour specs cost {spent['four'] / spent['mel128']:.2f} times what mel128 alone costs")


def test_share_of_each_step(clips: Path) -> None:
    kept: dict[str, object] = {}

    def keep(name: str, value: object) -> object:
        kept[name] = value
        return value

    def read(sound: str) -> object:
        with soundfile.SoundFile(sound) as file:
            return file.read(dtype="float32")

    steps: dict[str, Callable[[str], object]] = {
        "decode (soundfile alone)": read,
        "decode and mix down": lambda sound: keep("recording", decode(sound, Excerpt())),
        "resample": lambda _: keep("samples", kept["recording"].resampled(22050)),
        "spectrogram": lambda _: keep("plane", compute(kept["samples"], ["mel128"])["mel128"]),
        "quantise": lambda _: quantise(kept["plane"], MEL).tobytes(),
    }
    spent = milliseconds(steps, paths(clips))
    decoding = spent.pop("decode (soundfile alone)")
    whole = sum(spent.values())
    parts = {
        "decode": decoding,
        "mix down": spent.pop("decode and mix down") - decoding,
        **spent,
        "whole": whole,
    }
    table(
        "Share of each step",
        ["step", "ms a clip", "share"],
        [[step, spent, spent / whole] for step, spent in parts.items()],
    )


def test_resampler_qualities(clips: Path) -> None:
    rows = []
    recordings = [decode(sound, Excerpt()) for sound in paths(clips)[::5]]
    expected = [librosa_reference(recording.resampled(22050), MEL) for recording in recordings]
    for quality in ("VHQ", "HQ", "MQ", "LQ", "QQ"):
        started = time.process_time()
        resampled = [
            soxr.resample(recording.samples, recording.rate, 22050, quality=quality)
            for recording in recordings
        ]
        spent = (time.process_time() - started) * 1000 / len(recordings)
        errors = [
            np.abs(compute(samples, ["mel128"])["mel128"] - plane)
            for samples, plane in zip(resampled, expected, strict=True)
        ]
        rows.append([quality, spent, np.mean(errors), np.max(errors)])
    table("soxr", ["quality", "ms a clip", "mean error of mel128, dB against HQ", "largest error"], rows)


def loop_rate(sounds: list[str]) -> float:
    """Clips per second of a loop on one core, by the clock, as the rate of the stage."""
    transform_clip = songray_loop("mel128")
    with threadpoolctl.threadpool_limits(1):
        transform_clip(sounds[0])
        started = time.monotonic()
        for sound in sounds:
            transform_clip(sound)
    return len(sounds) / (time.monotonic() - started)


def stage_rate(library: Library) -> float:
    """Clips per second between the end of the first file and that of the last."""
    files = library.table("spectrograms", "default").files()
    ended = sorted((Path(path).stat().st_mtime, pq.read_metadata(path).num_rows) for path in files)
    return sum(rows for _, rows in ended[1:]) / (ended[-1][0] - ended[0][0])


class Usage:
    """Peak memory of the largest worker of Ray and of the object store, in MB, and the seconds of processor
    time of each process of Ray, by its id."""

    def __enter__(self) -> Usage:
        self.worker_mb = self.store_mb = 0.0
        self.spent: dict[int, float] = {}
        self.sample()
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
            self.sample()

    def sample(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times, memory = process.cpu_times(), process.memory_info()
                self.spent[process.pid] = times.user + times.system
                if process.name().startswith("ray::"):
                    self.worker_mb = max(self.worker_mb, (memory.rss - memory.shared) / 2**20)
        size = ray.cluster_resources()["object_store_memory"]
        free = ray.available_resources().get("object_store_memory", 0.0)
        self.store_mb = max(self.store_mb, (size - free) / 2**20)


def test_the_stage_on_two_cores(clips: Path, tmp_path: Path) -> None:
    """The rate between the first and the last file that the stage finishes, so that its start does not count.
    The loop runs right before and right after it."""
    sounds = [Path(path).read_bytes() for path in paths(clips)]
    ray.init(
        "local",
        num_cpus=LOCAL_LOGICAL_CPUS,  # as cluster.connect starts it on two cores
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=1 << 30,
    )
    configure_ray_data()
    rows: list[list[object]] = []
    seconds = []
    try:
        for count in (STAGE_CLIPS // 4, STAGE_CLIPS):
            library = Library.open(str(tmp_path / str(count)))
            for first in range(0, count, 100):
                numbers = range(first, min(first + 100, count))
                part = [
                    {"track_key": track_key(str(n), 0), "track_id": str(n), "audio": sounds[n % len(sounds)]}
                    for n in numbers
                ]
                schema = pa.schema(TABLES["previews"].columns)
                library.table("previews").append(pa.Table.from_pylist(part, schema), f"{first:06}")
            loops = [loop_rate(paths(clips))]
            with Usage() as usage:
                summary = transform(library, TransformConfig(rows_per_file=64))
            assert summary.done == count
            loops.append(loop_rate(paths(clips)))
            rate, loop = stage_rate(library), float(np.mean(loops))
            seconds.append(sum(usage.spent.values()) - sum(usage.before.values()))
            rows.append([count, loop, rate, rate / loop, usage.worker_mb, usage.store_mb])
    finally:
        ray.shutdown()
    head = ["clips", "loop, clips/s", "stage, clips/s", "ratio", "largest worker, MB", "object store, MB"]
    milliseconds_per_clip = 1000 * (seconds[1] - seconds[0]) / (STAGE_CLIPS - STAGE_CLIPS // 4)
    print(f"\neach further clip takes {milliseconds_per_clip:.1f} ms of processor time")
    table("Ray Data on 2 cores, beside a loop on one", head, rows)
