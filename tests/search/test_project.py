"""Maps: fitted to a sample, extended by new tracks, and what indexes take from them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from constructed import RUN, add_run, add_tracks, units
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import InvalidOption
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.search.index import Index
from songray.search.project import ProjectConfig, project
from songray.search.reference import Reference
from songray.search.stored_maps import newest_map, read_map_reference
from songray.search.version import newest_version


@given(st.integers(1, 40), st.integers(0, 99))
def test_a_track_of_the_reference_has_its_own_position(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors, positions = units(count), random.normal(size=(count, 2)).astype(np.float32)
    reference = Reference(np.arange(count), vectors, positions)
    assert np.allclose(reference.place(vectors), positions, atol=1e-2)
    assert np.allclose(reference.place(vectors.astype(np.float16).astype(np.float32)), positions, atol=1e-2)
    other = Reference.from_array(np.load(io.BytesIO(reference.to_bytes())))
    assert np.array_equal(other.place(units(50)), reference.place(units(50)))
    low, high = positions.min(axis=0) - 1e-5, positions.max(axis=0) + 1e-5
    placed = reference.place(units(50))
    assert ((placed >= low) & (placed <= high)).all()  # a mean, never beyond


def embed(library: Library, first: int, count: int) -> None:
    add_tracks(add_run(library), units(first + count)[first:], first)


def positions(library: Library, method: str) -> dict[str, tuple[float, float]]:
    rows = library.table("maps", RUN, method).read(["track_id", "x", "y"]).to_pylist()
    assert len({row["track_id"] for row in rows}) == len(rows)
    return {row["track_id"]: (row["x"], row["y"]) for row in rows}


@pytest.mark.usefixtures("cluster")
def test_a_map_grows_and_is_fitted_anew_where_the_library_has_doubled(library: Library) -> None:
    embed(library, 0, 60)
    config = ProjectConfig(run=RUN, method="pca")
    summary = project(library, config)
    assert (summary.done, summary.existing) == (60, 0) and "PCA of 60 tracks: trustw" in str(summary)
    first, fitted = positions(library, "pca"), newest_map(library, RUN)
    assert fitted is not None and len(read_map_reference(fitted.table).tracks) == 60
    embed(library, 60, 20)
    assert project(library, config).done == 20
    second = positions(library, "pca")
    assert first.items() <= second.items() and len(second) == 80  # the others stay where they were
    embed(library, 80, 50)
    assert project(library, config).done == 130
    third, refitted = positions(library, "pca"), newest_map(library, RUN)
    assert len(third) == 130 and refitted is not None and refitted.id != fitted.id
    assert project(library, config).done == 0
    assert project(library, ProjectConfig(run=RUN, method="pca", refit=True)).done == 130


@pytest.mark.usefixtures("cluster")
def test_an_index_has_the_positions_of_its_map(library: Library) -> None:
    embed(library, 0, 40)
    before = index(library, IndexConfig(run=RUN, links=8)).version
    assert before.map == ""
    project(library, ProjectConfig(run=RUN, method="tsne"))
    version = index(library, IndexConfig(run=RUN, links=8)).version
    fitted = newest_map(library, RUN)
    assert fitted is not None and (version.map, version.map_facts) == (fitted.id, fitted.facts)
    assert_positions(library, positions(library, "tsne"))
    embed(library, 40, 10)
    assert project(library, ProjectConfig(run=RUN, method="tsne")).done == 10
    grown = index(library, IndexConfig(run=RUN, links=8))
    assert grown.added == 10 and grown.version.map == version.map
    assert_positions(library, positions(library, "tsne"))


def assert_positions(library: Library, expected: dict[str, tuple[float, float]]) -> None:
    version = newest_version(library, RUN)
    assert version is not None
    (shard,) = Index.open(library, version).shards.values()
    points = shard.points(None, 100)
    ids = [row["track_id"] for row in shard.rows(points["label"])]
    assert set(ids) == set(expected)
    clusters = shard.attribute(points["label"], "cluster")
    assert {"1", "2"} <= set(clusters) and "" not in clusters
    for track_id, point in zip(ids, points, strict=True):
        assert (point["x"], point["y"]) == pytest.approx(expected[track_id], abs=1e-3)


def test_a_fit_that_was_killed_is_done_anew(library: Library, cluster: None) -> None:
    """It leaves rows, and a reference without map.json."""
    embed(library, 0, 30)
    project(library, ProjectConfig(run=RUN, method="pca"))
    made = Path(library.root, "maps", RUN, "pca", "_map.json")
    assert json.loads(made.read_text())["fitted_tracks"] == 30
    made.unlink()
    assert newest_map(library, RUN) is None
    assert project(library, ProjectConfig(run=RUN, method="pca")).done == 30
    assert len(positions(library, "pca")) == 30


def test_options_that_cannot_be_used_are_named() -> None:
    with pytest.raises(InvalidOption, match="fitted_tracks is 1: must be at least 2"):
        ProjectConfig(fitted_tracks=1)
