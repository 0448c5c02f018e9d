"""Every stage killed with SIGKILL midway and started again, on 1,000 synthetic tracks; then 100 more. And
ten times a writer that is killed, or taken over by a second one while it writes.

For each stage: rows finished when it was killed, rows that the next run skipped and processed, rows in the
end, files that were written again, finished rows that were lost, and rows stored twice. Environment: SONGS,
1000.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import tone
from tabulate import tabulate

from songray.catalogue.sources.synthetic.server import served
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.learning import runs
from songray.library import Library
from songray.table import Table

INTERRUPTIONS = 10
DOWNLOAD = ("--workers", "1", "--downloads-per-worker", "4", "--host-requests-per-second", "1000")
ROOT = Path(__file__).resolve().parents[2]
SONGS, MORE = int(os.environ.get("SONGS", 1000)), 100
PORT = 8131
CAE = ("cae", "--run", "cae", "--dense-units", "64", "--latent", "16", "--epochs", "2", "--batch-size", "64")


def start(job: str, library: Library, *options: str) -> subprocess.Popen[str]:
    command, rest = ([options[0]], options[1:]) if job in ("crawl", "train") else ([], options)
    arguments = [sys.executable, f"jobs/{job}.py", *command, "--library", library.root, *rest]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen[str], midway: Callable[[], bool]) -> None:
    while not midway():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # until its workers have ended


def counts(table: Table) -> Counter[int]:
    return Counter(table.read(["track_key"])["track_key"].to_pylist())


def table_stage(library: Library, job: str, name: str, *options: str) -> list[object]:
    """Kill a stage from table to table once a third of its rows is finished, and start it again."""
    table = library.table(*name.split("/"))
    process = start(job, library, "--rows-per-file", "32", *options)
    kill_when(process, lambda: table.finished_keys().size >= SONGS / 3)
    finished = set(table.finished_keys().tolist())
    modified = {path: Path(path).stat().st_mtime_ns for path in table.files()}
    output = finish(start(job, library, *options))
    before, done = map(int, re.search(r"(\d+) finished before \+ (\d+) finished now", output).groups())
    now = counts(table)
    rewritten = sum(Path(path).stat().st_mtime_ns != time_ns for path, time_ns in modified.items())
    assert before == len(finished) and before + done == SONGS and rewritten == 0
    assert set(now.values()) == {1} and len(now) == SONGS and finished <= set(now)
    lost, twice = len(finished - set(now)), sum(count > 1 for count in now.values())
    return [job, len(finished), before, done, len(now), rewritten, lost, twice]


@pytest.mark.timeout(0)
def test_kills(tmp_path: Path) -> None:
    library = Library.open(str(tmp_path))
    source = ("synthetic", "--songs", str(SONGS), "--audio-port", str(PORT))
    rows = []
    tracks = library.table("tracks")
    process = start("crawl", library, *source)
    kill_when(process, lambda: bool(library.table("tracks").files()) or process.poll() is not None)
    finished = set(counts(tracks))
    finish(start("crawl", library, *source))
    now = counts(tracks)
    assert set(now.values()) == {1} and len(now) == SONGS
    rows.append(["crawl", len(finished), len(finished), SONGS - len(finished), len(now), "", "", ""])
    with served(SyntheticSource(songs=SONGS + MORE, audio_port=PORT)):
        rows.append(table_stage(library, "download", "previews", "--total-seconds", "600"))
        rows.append(table_stage(library, "transform", "spectrograms/default"))
        checkpoints = Path(library.path("runs", "cae", "train"))
        kill_when(start("train", library, *CAE), lambda: len(list(checkpoints.glob("checkpoint_*"))) > 0)
        output = finish(start("train", library, *CAE))
        epochs = [epoch["epoch"] for epoch in runs.find(library, "cae").curve]
        assert epochs == [1, 2]
        rows.append(["train (epochs)", "≥ 1", "≥ 1", "≤ 1", len(epochs), "", "", ""])
        rows.append(table_stage(library, "embed", "embeddings/cae"))
        versions = Path(library.path("indexes", "cae"))
        kill_when(start("index", library), lambda: versions.exists())
        output = finish(start("index", library))
        rows.append(["index (versions)", "", "", "", len(library.folders("indexes", "cae")), "", "", ""])
        heads = [
            "stage",
            "finished at the kill",
            "skipped",
            "processed after",
            "in the end",
            "written again",
            "lost",
            "stored twice",
        ]
        print(f"\n{SONGS} tracks, each stage killed with SIGKILL midway and started again\n")
        print(tabulate(rows, heads, tablefmt="github"))
        print(f"\n{MORE} more tracks\n")
        run = runs.find(library, "cae")
        for job, options in (
            ("crawl", ("synthetic", "--songs", str(SONGS + MORE), "--audio-port", str(PORT))),
            ("download", ()), ("transform", ()), ("train", CAE), ("embed", ()), ("index", ()),
        ):  # fmt: skip
            output = finish(start(job, library, *options)).strip().splitlines()[0]
            print(f"    {output}")
            if job in ("download", "transform", "embed"):
                assert f"{SONGS} finished before + {MORE} finished now" in output
        assert runs.find(library, "cae") == run
        assert "version 000002" in output


def content(table: Table, columns: list[str]) -> dict[int, tuple[object, ...]]:
    """The rows by key. Raises AssertionError where one is stored twice."""
    rows = table.read(["track_key", *columns])
    keys = rows["track_key"].to_pylist()
    assert len(keys) == len(set(keys)) and sorted(keys) == table.finished_keys().tolist()
    return dict(zip(keys, zip(*(rows[name].to_pylist() for name in columns), strict=True), strict=True))


def interrupted(library: Library, job: str, name: str, *stage_options: str) -> list[object]:
    """Run a stage, interrupted ten times: by turns it is killed and started again at once, while its workers
    may still write, and taken over by a second process while it writes."""
    table = library.table(*name.split("/"))
    options = ("--rows-per-file", "16", *stage_options)
    process, taken_over = start(job, library, *options), 0
    for number in range(INTERRUPTIONS):
        least = table.finished_keys().size + SONGS // (INTERRUPTIONS + 2)
        while table.finished_keys().size < least and process.poll() is None:
            time.sleep(0.02)
        if number % 2:
            successor = start(job, library, *options, "--take-over")
            process.communicate()
            taken_over += process.returncode == 1
            process = successor
        else:
            process.kill()
            process.communicate()
            process = start(job, library, *options)
    finish(process)
    finish(start(job, library, *stage_options))
    notes = len(list(Path(table.checkpoint_path).glob("*.pending.parquet")))
    return [job, INTERRUPTIONS, taken_over, table.finished_keys().size, notes]


class Slow(SimpleHTTPRequestHandler):
    """Serves the files of a folder, each after half a second."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        time.sleep(0.5)
        super().do_GET()


@contextmanager
def slow_catalogue(folder: Path) -> Iterator[str]:
    """A manifest of SONGS tracks, with sounds of 20 s on a local server."""
    folder.mkdir()
    sounds = [tone(folder / f"{number}.flac", 20, 200 + 20 * number).read_bytes() for number in range(24)]
    for number in range(SONGS):
        (folder / f"{number}.flac").write_bytes(sounds[number % len(sounds)])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        manifest = folder / "songs.csv"
        addresses = (f"{n},http://127.0.0.1:{server.server_port}/{n}.flac\n" for n in range(SONGS))
        manifest.write_text("id,url\n" + "".join(addresses))
        yield str(manifest)
        server.shutdown()


@pytest.mark.timeout(0)
def test_ten_interruptions(tmp_path: Path) -> None:
    whole, broken = (Library.open(str(tmp_path / name)) for name in ("whole", "broken"))
    rows = []
    with slow_catalogue(tmp_path / "files") as manifest:
        for library in (whole, broken):
            finish(start("crawl", library, "manifest", "--manifest", manifest))
        for job, name, columns, options in (
            ("download", "previews", ["track_id", "sha256", "error"], DOWNLOAD),
            ("transform", "spectrograms/default", ["track_id", "mel128", "error"], ()),
        ):
            finish(start(job, whole, *options))
            row = interrupted(broken, job, name, *options)
            expected, now = (content(library.table(*name.split("/")), columns) for library in (whole, broken))
            assert expected == now
            rows.append([*row, sum(expected[key] != now.get(key) for key in expected)])
    heads = ["stage", "interruptions", "of them taken over", "rows", "notes left", "rows that differ"]
    print(f"\n{SONGS} tracks, compared key by key with an unbroken run\n")
    print(tabulate(rows, heads, tablefmt="github"))
