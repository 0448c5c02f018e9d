"""The walls: what may import what."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from songray.library import TABLES
from songray.sources.base import Artist, PlaylistEntry, Track

ROOT = Path(__file__).resolve().parents[1]
READING_ORDER = [
    "library", "stages", "web", "sources", "frontier", "catalog", "previews", "audio", "spectrograms",
    "latents", "models", "runs", "segments", "loop", "feed", "fitting", "training", "embeddings", "names",
    "graphs", "shards", "versions", "index", "recommender", "evaluation", "amendments", "service", "command",
]  # fmt: skip
WITHOUT_RAY = ["audio", "models", "names", "graphs", "shards", "versions", "recommender", "evaluation",
               "segments", "runs", "loop", "library", "frontier"]  # fmt: skip
STAGES = {"catalog": "crawl", "previews": "download", "spectrograms": "transform", "latents": "factorize",
          "training": "train",
          "embeddings": "embed", "index": "index", "evaluation": "evaluate"}  # fmt: skip
MODULES = sorted((ROOT / "songray").rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT / "songray").with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_place_in_the_reading_order() -> None:
    assert {place(path) for path in MODULES} - {"__init__"} == set(READING_ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_in_reading_order(path: Path) -> None:
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("songray.")}
    if place(path) == "__init__":
        assert not ours
        return
    allowed = READING_ORDER[: READING_ORDER.index(place(path)) + 1]
    assert ours <= set(allowed)
    if place(path) in WITHOUT_RAY:
        assert not [name for name in imported(path) if name.split(".")[0] == "ray"]


@pytest.mark.parametrize(("module", "stage"), STAGES.items())
def test_a_stage_reads_from_top_to_bottom(module: str, stage: str) -> None:
    """Docstring of what it reads and writes; config; the stage, short; then what it calls."""
    tree = ast.parse((ROOT / "songray" / f"{module}.py").read_text())
    docstring = ast.get_docstring(tree) or ""
    assert "eads " in docstring and ("writes" in docstring or "returns" in docstring)
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert names.index(f"{stage.capitalize()}Config") < names.index(stage)
    assert functions[0].name == stage
    assert len(functions[0].body) <= 20


def test_stages_do_not_call_each_other() -> None:
    for module in STAGES:
        names = imported(ROOT / "songray" / f"{module}.py")
        others = {f"songray.{other}.{stage}" for other, stage in STAGES.items() if other != module}
        assert not names & others


def test_every_job_is_thin_and_nothing_imports_it() -> None:
    jobs = sorted((ROOT / "jobs").glob("*.py"))
    assert {path.stem for path in jobs} >= set(STAGES.values()) | {"serve", "pipeline"}
    assert {kind.job for kind in TABLES.values()} <= {path.stem for path in jobs}
    for path in MODULES:
        assert not [name for name in imported(path) if name.split(".")[0] == "jobs"]


def test_tables_hold_what_sources_tell() -> None:
    kept = set(TABLES["tracks"].columns)
    assert {field.name for field in fields(Track)} - {"audio_version"} <= kept
    assert {field.name for field in fields(Artist)} <= set(TABLES["artists"].columns)
    assert {field.name for field in fields(PlaylistEntry)} <= set(TABLES["playlists"].columns)
