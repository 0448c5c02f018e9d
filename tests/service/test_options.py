from __future__ import annotations

import subprocess
import sys

import pytest

from songray.errors import InvalidOption
from songray.service.options import IngressConfig

HEAVY = {"ray", "torch", "fastapi", "starlette", "aiohttp", "scipy", "av", "prometheus_client"}


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InvalidOption, match="slots is -1: must be at least 0"):
        IngressConfig(slots=-1)
    with pytest.raises(InvalidOption, match="max_replicas is 2: must be at least 3"):
        IngressConfig(replicas=3, max_replicas=2)


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("songray.service.options", HEAVY),
        ("songray.service.api", {"ray", "torch"}),
        ("songray.service.app, songray.service.ingress, songray.service.slots", {"torch", "librosa"}),
    ],
)
def test_modules_load_in_a_fresh_interpreter_without(modules: str, absent: set[str]) -> None:
    code = f"import sys, {modules}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
