from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
import ray
from conftest import free_port
from serving import local_service, problem, shared_library

from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.service.app import served
from songray.service.options import IngressConfig, ServeConfig


@pytest.fixture(scope="module")
def sharded(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The shared library with a quantised index of four shards."""
    whole = shared_library(tmp_path_factory)[0]
    library = Library.open(str(tmp_path_factory.mktemp("sharded") / "library"))
    for name in ("tracks", "runs", "embeddings"):
        shutil.copytree(Path(whole.path(name)), library.path(name))
    index(library, IndexConfig(links=8, shard_tracks=7, bits=8))
    return library


@pytest.mark.slow
def test_slots_answer_as_one_index_and_in_part_while_one_is_down(
    sharded: Library, capfd: pytest.CaptureFixture[str]
) -> None:
    ingress = IngressConfig(slots=2, encoders=0, max_ongoing=20, watch_seconds=0.3)
    config = ServeConfig(port=free_port(), ingress=ingress)
    similar = "/v1/tracks/t:12/similar?k=50&per_artist=0"
    paths = (
        similar,
        "/v1/path?from=t:1&to=t:20",
        "/v1/tracks?q=bjork 1",
        "/v1/map",
        "/v1/points/positions?track=t:1&track=t:20",
    )
    with served(sharded, config) as url, httpx.Client(base_url=url, timeout=30) as client:
        with local_service(sharded, ingress) as local:
            for path in paths:
                assert client.get(path).json() == httpx.get(f"{local}{path}").json()
        assert client.get("/v1/stats").json()["shards"] == 4
        assert client.get("/v1/tracks/t:999").status_code == 404
        rejected = client.post("/v1/similar", files={"audio": b"x"})
        assert problem(rejected) == (503, "this service accepts no uploads: it runs with --encoders 0")
        complete, responses = client.get(similar).json(), []
        kill_replica("songray#slot-1")
        for _ in range(100):  # until another replica has started
            responses.append(client.get(similar))
            if responses[-1].status_code == 200 and not responses[-1].json()["partial"]:
                break
    assert "graceful_shutdown" not in capfd.readouterr().out  # Ray's error, which nobody can act on
    assert responses[-1].json() == complete
    ids = [match["track"]["track_id"] for match in complete["similar"]]
    for response in responses[:-1]:
        if response.status_code == 503:  # the seed itself is missing
            assert problem(response)[1].startswith("a part of the index")
        else:
            partial = [match["track"]["track_id"] for match in response.json()["similar"]]
            assert response.json()["partial"] and partial == [name for name in ids if name in partial]


def kill_replica(deployment: str) -> None:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = (name for name in names if f"{deployment}#" in name)
    ray.kill(ray.get_actor(name, namespace="serve"))
