"""Seconds until a command ends: the help of jobs, a job that has nothing to do, and the first that needs Ray.

    make bench, or: python -m pytest -q -s --timeout=0 tests/benchmarks/bench_start.py

Each command runs in a process of its own, once before it is measured, so that its files are in the page
cache. The peers are an interpreter that imports nothing, one that imports the libraries that the options of
all jobs need, and one that starts a local Ray as a job does. Commands alternate, so that other programs slow
down all of them. Environment: RUNS, 5, of each command without Ray; RAY_RUNS, 3, of each that starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from tabulate import tabulate

from songray.cluster import ENVIRONMENT, LOCAL_LOGICAL_CPUS
from songray.keys import track_key
from songray.library import Library
from songray.tables import TABLES

ROOT = Path(__file__).resolve().parents[2]
RUNS = int(os.environ.get("RUNS", "5"))
RAY_RUNS = int(os.environ.get("RAY_RUNS", "3"))
CLIPS = 2
CLIP_SECONDS = 3
SONGRAY = (sys.executable, "-m", "songray")
RAY_INIT = f"""
import time, ray
started = time.monotonic()
ray.init("local", num_cpus={LOCAL_LOGICAL_CPUS}, include_dashboard=False, logging_level="ERROR")
print(time.monotonic() - started)
"""

pytestmark = pytest.mark.timeout(0)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def run(command: tuple[str, ...]) -> tuple[float, str]:
    """The seconds from the start of a process to its end, and its output."""
    started = time.monotonic()
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started, done.stdout


def library_of_clips(path: Path) -> Library:
    """A library with a few short previews that have no spectrograms yet."""
    library = Library.open(str(path))
    rows = []
    for number in range(CLIPS):
        location = path / f"{number}.wav"
        noise = np.random.default_rng(number).normal(0, 0.1, 22050 * CLIP_SECONDS)
        soundfile.write(location, noise, 22050)
        track_id = f"t:{number}"
        rows.append({"track_key": track_key(track_id, 0), "track_id": track_id, "location": str(location)})
    schema = pa.schema(TABLES["previews"].columns)
    library.table("previews").append(pa.Table.from_pylist(rows, schema), "000001")
    return library


def transform_command(library: Library) -> tuple[str, ...]:
    return (*SONGRAY, "transform", "--library", library.root)


def table(title: str, seconds: dict[str, list[float]]) -> None:
    heads = ["command", "median (s)", "least (s)", "most (s)"]
    rows = [[name, median(values), min(values), max(values)] for name, values in seconds.items()]
    print(f"\n{title}\n\n{tabulate(rows, heads, tablefmt='github', floatfmt='.2f')}")


def test_commands_without_ray(tmp_path: Path) -> None:
    complete = library_of_clips(tmp_path)
    run(transform_command(complete))
    commands = {
        "python -c pass": python("pass"),
        'python -c "import numpy, pyarrow"': python("import numpy, pyarrow"),
        "songray --help": (*SONGRAY, "--help"),
        "songray train cae --help": (*SONGRAY, "train", "cae", "--help"),
        "songray serve --help": (*SONGRAY, "serve", "--help"),
        "songray transform, of a complete library": transform_command(complete),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS + 1):
        for name, command in commands.items():
            seconds[name].append(run(command)[0])
    table(f"Commands that do not need Ray, {RUNS} runs", {name: runs[1:] for name, runs in seconds.items()})


def test_first_job_that_needs_ray(tmp_path: Path) -> None:
    peer, job = 'python -c "import ray; ray.init(…)"', f"songray transform, of {CLIPS} clips"
    seconds: dict[str, list[float]] = {peer: [], "of which ray.init alone": [], job: []}
    for number in range(RAY_RUNS + 1):
        whole, init = run(python(RAY_INIT))
        transformed, output = run(transform_command(library_of_clips(tmp_path / str(number))))
        assert f"0 finished before + {CLIPS} finished now" in output
        for values, value in zip(seconds.values(), (whole, float(init), transformed), strict=True):
            values.append(value)
    table(f"Commands that start Ray, {RAY_RUNS} runs", {name: runs[1:] for name, runs in seconds.items()})
