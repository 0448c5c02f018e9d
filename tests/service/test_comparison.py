"""The listening test: two runs side by side, and the judgements of listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import CLIPS, RUN, LocalService, add_embeddings, copied_library, local_service, problem, save_run

from songray.errors import InvalidOption, StorageError
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.search.index import Index
from songray.service.ingress import Ingress
from songray.service.options import IngressConfig
from songray.service.snapshots import find_version
from songray.table import Table

OTHER = "mfcc-y"
JUDGEMENT = {"session": "0123456789ab", "track_id": "t:3", "left": RUN, "right": OTHER, "preferred": "right"}


@pytest.fixture(scope="module")
def two_runs(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    library, folder = copied_library(tmp_path_factory)
    save_run(library, OTHER, coefficients=2)
    add_embeddings(library, folder, range(CLIPS), OTHER)
    index(library, IndexConfig(run=OTHER, links=8))
    return library


@pytest.fixture(scope="module")
def client(two_runs: Library) -> Iterator[httpx.Client]:
    service = LocalService(two_runs)
    service.other = Index.open(two_runs, find_version(two_runs, OTHER))
    with (
        local_service(two_runs, IngressConfig(), service=service) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_both_runs_answer_in_random_order(client: httpx.Client) -> None:
    alone = client.get("/v1/tracks/t:3/similar?k=5").json()["similar"]
    orders = set()
    for _ in range(40):
        response = client.get("/v1/comparison?track=t:3&k=5").json()
        lists = {one["run"]: one["similar"] for one in response["lists"]}
        assert response["track"]["track_id"] == "t:3" and lists[RUN] == alone and lists[OTHER] != alone
        orders.add(tuple(lists))
    assert orders == {(RUN, OTHER), (OTHER, RUN)}
    assert client.get("/v1/stats").json()["compared"] == OTHER
    assert problem(client.get("/v1/comparison?track=t:999"))[0] == 404


def test_a_judgement_is_stored_as_a_row(client: httpx.Client, two_runs: Library) -> None:
    before = two_runs.table("judgements").read().num_rows
    assert client.post("/v1/judgements", json=JUDGEMENT).status_code == 204
    row = two_runs.table("judgements").read().to_pylist()[before]
    assert {name: row[name] for name in JUDGEMENT} == JUDGEMENT and row["at"].year >= 2026


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"left": "another"}, "which are compared"),
        ({"left": OTHER}, "which are compared"),
        ({"preferred": "both"}, "'left', 'right' or 'neither'"),
        ({"session": "../../x"}, "pattern"),
    ],
)
def test_a_judgement_of_something_else_is_rejected(
    client: httpx.Client, two_runs: Library, change: dict[str, Any], detail: str
) -> None:
    before = len(two_runs.table("judgements").files())
    status, text = problem(client.post("/v1/judgements", json=JUDGEMENT | change))
    assert status == 422 and detail in text
    assert len(two_runs.table("judgements").files()) == before


def test_a_library_that_cannot_be_written_is_reported(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise StorageError("judgements: read-only file system")

    monkeypatch.setattr(Table, "append", refuse)
    status, text = problem(client.post("/v1/judgements", json=JUDGEMENT))
    assert status == 503 and "was not stored: judgements: read-only file system" in text


def test_a_service_of_one_run_compares_nothing(two_runs: Library) -> None:
    with local_service(two_runs, IngressConfig()) as url:
        assert httpx.get(f"{url}/v1/stats").json()["compared"] is None
        for response in (
            httpx.get(f"{url}/v1/comparison?track=t:3"), httpx.post(f"{url}/v1/judgements", json=JUDGEMENT)
        ):  # fmt: skip
            status, text = problem(response)
            assert status == 404 and "songray serve --runs" in text


def test_an_ingress_changes_the_runs_that_it_compares(two_runs: Library) -> None:
    async def change() -> None:
        ingress = Ingress(two_runs, IngressConfig(watch_seconds=60), None, [])

        def served() -> tuple[str, str]:
            other = ingress.compared()
            return ingress.snapshot().version.run, other.version.run if other else ""

        both = {"run": RUN, "version": "", "compared": OTHER}
        for config, expected in (
            (both, (RUN, OTHER)),
            ({**both, "run": OTHER, "compared": RUN}, (OTHER, RUN)),
            ({**both, "compared": ""}, (RUN, "")),
            ({"run": OTHER, "version": ""}, (OTHER, "")),
        ):
            await ingress.reconfigure(config)
            assert served() == expected

    asyncio.run(change())


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c")])
def test_two_runs_are_compared(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="name two runs to compare"):
        IngressConfig(runs=names)
    with pytest.raises(InvalidOption, match="no --run"):
        IngressConfig(run="a", runs=("a", "b"))
    assert IngressConfig(runs=("a", "b")).served == ("a", "b")
