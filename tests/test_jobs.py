"""Each job through `ray job submit`, on a head node that has songray's dependencies but not songray."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
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
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PATH": f"{python.parent}:{os.environ['PATH']}"}
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


def submit(head: dict[str, str], entrypoint: str, *options: str) -> str:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", *options, "--working-dir", "."]
    done = subprocess.run(
        [*command, "--", "sh", "-ec", entrypoint], cwd=ROOT, env=head, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_job_runs_where_songray_is_not_installed(head: dict[str, str], tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    for number in range(12):
        tone(music / f"{number}.mp3", seconds=7, hertz=200 + 60 * number)
    library = f"--library {tmp_path / 'library'}"
    crawled = submit(head, f"python jobs/crawl.py folder {library} --folder {music}")
    assert "12 new" in crawled
    small = "--dense-units 64 --latent 16 --epochs 2 --run cae"
    jobs = ["download", "transform", f"train.py cae {small}", "embed", "index", "evaluate"]
    lines = [f"python jobs/{job if '.py' in job else f'{job}.py'} {library}" for job in jobs]
    told = submit(head, "\n".join(lines))  # one after the other, in one submission: each costs seconds
    assert told.count("12 done now") == 3
    for part in ("2 epochs", "version 000001, 12 tracks", "nearest", "chance"):
        assert part in told
    (port,) = ports(1)
    started = submit(head, f"exec python jobs/serve.py {library} --port {port}", "--no-wait")
    identity = re.search(r"raysubmit_\w+", started)[0]
    assert answered(f"http://127.0.0.1:{port}/readyz")["tracks"] == 12
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", identity],
        env=head,
        check=True,
        capture_output=True,
    )


def answered(url: str) -> dict[str, object]:
    transport = httpx.HTTPTransport(retries=0)
    with httpx.Client(transport=transport, timeout=2) as client:
        for _ in range(400):
            try:
                return client.get(url).raise_for_status().json()
            except (httpx.TransportError, httpx.HTTPStatusError):
                time.sleep(0.25)
    raise AssertionError(f"{url} did not answer")


def test_cluster_yaml_is_valid() -> None:
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu"}
