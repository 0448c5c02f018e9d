from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import LocalService, local_service, problem, shared_library

from songray.library import Library
from songray.service.middlewares import SECURITY_HEADERS
from songray.service.options import IngressConfig


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


def test_an_unexpected_error_is_a_problem_too(indexed: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(service: LocalService) -> None:
        raise KeyError("private")

    monkeypatch.setattr(LocalService, "snapshot", fail)
    with local_service(indexed, IngressConfig()) as url:
        response = httpx.get(f"{url}/v1/stats")
        status, detail = problem(response)
    assert status == 500 and "private" not in detail
    assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


@pytest.mark.slow
def test_the_api_behaves_as_its_document_says(indexed: Library, tmp_path: Path) -> None:
    """schemathesis generates requests from the document: every response is described, none is a 500."""
    with local_service(indexed, IngressConfig()) as url:
        tool = str(Path(sys.executable).with_name("schemathesis"))
        options = ["--max-examples=25", "--seed=0", "--no-color", "--suppress-health-check=all",
                   "--checks=all", "--exclude-checks=positive_data_acceptance"]  # fmt: skip
        command = [tool, "run", f"{url}/openapi.json", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-5000:]
