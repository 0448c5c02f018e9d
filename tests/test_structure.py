"""The structure of the package: what may import what."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from songray.catalogue.sources.base import Artist, PlaylistEntry, Track
from songray.library import TABLES

ROOT = Path(__file__).resolve().parents[1]
READING_ORDER = [
    "library", "stages", "web", "catalogue", "audio", "learning", "search", "evaluation", "amend",
    "service", "command",
]  # fmt: skip
MODULES = sorted((ROOT / "songray").rglob("*.py"))


def wing(path: Path) -> str:
    """The entry at the top of the package that a module belongs to."""
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
    assert {wing(path) for path in MODULES} - {"__init__"} == set(READING_ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_in_reading_order(path: Path) -> None:
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("songray.")}
    if wing(path) == "__init__":
        assert not ours
        return
    assert ours <= set(READING_ORDER[: READING_ORDER.index(wing(path)) + 1])


def test_nothing_imports_a_job() -> None:
    assert {kind.job for kind in TABLES.values()} <= {path.stem for path in (ROOT / "jobs").glob("*.py")}
    for path in MODULES:
        assert not [name for name in imported(path) if name.split(".")[0] == "jobs"]


def test_tables_hold_what_sources_tell() -> None:
    kept = set(TABLES["tracks"].columns)
    assert {field.name for field in fields(Track)} - {"audio_version"} <= kept
    assert {field.name for field in fields(Artist)} <= set(TABLES["artists"].columns)
    assert {field.name for field in fields(PlaylistEntry)} <= set(TABLES["playlists"].columns)
