"""Each job through `ray job submit`, on a head node that has songray's dependencies but not songray."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from conftest import tone
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


def ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that finds the installed libraries, but not this checkout, which is only linked there."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = subprocess.run(
        [folder / "bin/python", "-c", "import ray, songray"], capture_output=True, text=True, cwd="/"
    )
    assert "No module named 'songray'" in found.stderr
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def head(python: Path) -> Iterator[dict[str, str]]:
    """A head node of its own; gives the environment in which its jobs are submitted."""
    gcs, dashboard, client, agent = ports(4)
    files = tempfile.TemporaryDirectory(prefix="ray-head-", dir="/tmp", ignore_cleanup_errors=True)
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": files.name,  # it leaves its address there
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={gcs}", "--num-cpus=6",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={agent}", "--object-store-memory=400000000", "--disable-usage-stats",
    ]  # fmt: skip
    node = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{dashboard}"
    for _ in range(240):
        try:
            if httpx.get(f"{url}/api/version", timeout=1).status_code == 200:
                break
        except httpx.TransportError:
            assert node.poll() is None
        time.sleep(0.25)
    yield environment | {"RAY_ADDRESS": url}
    processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
    node.wait()
    files.cleanup()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_job_runs_where_songray_is_not_installed(head: dict[str, str], tmp_path: Path) -> None:
    """One after the other, in one submission: each costs seconds. The last serves until the node ends."""
    music = tmp_path / "music"
    music.mkdir()
    for number in range(12):
        tone(music / f"{number}.mp3", seconds=7, hertz=200 + 60 * number)
    (port,) = ports(1)
    train = "train contrastive --widths 8 16 --batch-size 16 --epochs 2 --run small"
    jobs = [f"crawl folder --folder {music}", "download", "transform", train, "embed", "index", "evaluate",
            f"serve --port {port}"]  # fmt: skip
    names_and_options = [job.partition(" ") for job in jobs]
    lines = [
        f"python jobs/{name}.py {options} --library {tmp_path / 'library'}"
        for name, _, options in names_and_options
    ]
    identity = submit(head, "\n".join(lines))
    url = f"http://127.0.0.1:{port}/readyz"
    assert answered(url, lambda: job(head, identity)["status"] != "FAILED")["tracks"] == 12
    logs = job(head, f"{identity}/logs")["logs"]
    assert logs.count("12 finished now") == 3
    for part in ("12 new", "2 epochs", "version 000001, 12 tracks", "no two of the 12 tracks share a known"):
        assert part in logs


def submit(head: dict[str, str], entrypoint: str) -> str:
    """The identity of the job."""
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--no-wait",
        "--working-dir",
        ".",
    ]
    done = subprocess.run(
        [*command, "--", "sh", "-ec", entrypoint], cwd=ROOT, env=head, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return re.search(r"raysubmit_\w+", done.stdout)[0]


def job(head: dict[str, str], path: str) -> dict[str, str]:
    return httpx.get(f"{head['RAY_ADDRESS']}/api/jobs/{path}", timeout=30).raise_for_status().json()


def answered(url: str, may_come: Callable[[], bool]) -> dict[str, object]:
    while may_come():
        with suppress(httpx.TransportError, httpx.HTTPStatusError):
            return httpx.get(url, timeout=2).raise_for_status().json()
        time.sleep(0.5)
    raise AssertionError(f"{url} will not answer")


def test_cluster_yaml_is_valid() -> None:
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu"}
