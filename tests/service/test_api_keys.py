"""Keys travel from the driver to the replicas, and a service is open only where it is told to be."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import ray
from conftest import free_port
from ray import serve
from serving import shared_library

from songray.catalogue.crawl import CrawlConfig
from songray.catalogue.sources.folder import FolderSource
from songray.errors import InvalidOption
from songray.library import Library
from songray.pipeline import PipelineConfig, pipeline
from songray.service.api_keys import VARIABLE, ApiKeys, keys_for
from songray.service.app import CONTROLLER, build, deploy, served
from songray.service.options import IngressConfig, ServeConfig

FIRST, SECOND = "key-of-the-first-deployment", "key-of-the-second-deployment"


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


def test_each_deployment_brings_its_keys_to_a_ray_that_runs_already(
    indexed: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServeConfig(host="0.0.0.0", port=free_port(), ingress=IngressConfig(encoders=0))
    monkeypatch.setenv(VARIABLE, FIRST)
    with served(indexed, config) as url:
        assert statuses(url) == {"none": 401, FIRST: 200, SECOND: 401}
        monkeypatch.setenv(VARIABLE, SECOND)
        deploy(indexed, config)
        assert statuses(url) == {"none": 401, FIRST: 401, SECOND: 200}
        for displayed in (serve.status(), details_of_rest_api()):
            assert displayed and SECOND not in str(displayed)
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(InvalidOption, match=r"--host 0\.0\.0\.0 .* pass --open"):
            deploy(indexed, replace(config, host="127.0.0.1"))  # which a Serve that runs does not change
        assert statuses(url) == {"none": 401, FIRST: 401, SECOND: 200}


def statuses(url: str) -> dict[str, int]:
    """The status of a request by its key."""
    return {
        key: httpx.get(f"{url}/v1/stats", headers={"Authorization": f"Bearer {key}"}).status_code
        for key in ("none", FIRST, SECOND)
    }


def details_of_rest_api() -> object:
    """What `serve status`, the dashboard and the REST API display."""
    controller = ray.get_actor(CONTROLLER, namespace="serve")
    return ray.get(controller.get_serve_instance_details.remote())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "music.example"])
def test_a_service_that_other_machines_reach_needs_keys(
    host: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, " , ")
    with (
        pytest.raises(InvalidOption, match=rf"--host {host} .* set SONGRAY_KEYS=.* or pass --open"),
        served(library, ServeConfig(host=host)),
    ):
        pass
    assert keys_for(host, is_open=True) == set()
    for loopback in ("127.0.0.1", "::1", "localhost"):
        assert keys_for(loopback, is_open=False) == set()
    monkeypatch.setenv(VARIABLE, "one, two")
    assert keys_for(host, is_open=False) == {"one", "two"}


def test_a_pipeline_that_could_not_serve_does_not_start(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(InvalidOption, match="or pass --open"):
        pipeline(library, FolderSource(str(tmp_path)), CrawlConfig(), PipelineConfig(host="0.0.0.0"))
    assert not any(Path(library.root).iterdir())


def test_the_builder_of_serve_yaml_needs_keys_or_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(InvalidOption, match="state `open: true`"):
        build({"library": str(tmp_path)})
    build({"library": str(tmp_path), "open": True})
    monkeypatch.setenv(VARIABLE, FIRST)
    build({"library": str(tmp_path), "open": False})


def test_keys_are_pickled_and_not_displayed() -> None:
    keys = pickle.loads(pickle.dumps(ApiKeys({FIRST})))
    assert keys == {FIRST} and type(keys) is ApiKeys
    assert FIRST not in f"{keys!r} {keys} {[keys]}"
