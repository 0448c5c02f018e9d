from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
