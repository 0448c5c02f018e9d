"""The structure of the package: what may import what, and how large its parts may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

import songray
from songray.catalogue.sources.base import Artist, PlaylistEntry, Track
from songray.catalogue.sources.names import SOURCE_NAMES
from songray.jobs import JOBS
from songray.tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "songray"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONG_FILES: dict[str, str] = {}  # path: why it has more than 300 lines
# Any part of Ray, and libraries that take long to load.
HEAVY = {"ray", "torch", "librosa", "scipy", "sklearn", "aiohttp", "av", "soxr", "soundfile", "fastapi",
         "pandas", "uvicorn", "httpx", "spotipy", "requests", "implicit", "hnswlib", "matplotlib",
         "umap", "igraph", "jinja2"}  # fmt: skip
WITHOUT_RAY = {
    "catalogue": ["sources.base", "sources.names", "frontier"],
    "audio": ["excerpt", "spectrograms", "decode"],
    "learning": ["models", "models.options", "models.formats", "runs", "split", "windows", "scale", "fusion",
                 "encoder", "loop"],
    "search": ["hnsw", "text", "tags", "words", "filters", "maps", "reference", "candidates", "version",
               "shard", "shard_files", "index", "ranking", "paths", "target", "rows"],
    "evaluation": ["metrics", "intervals", "sample", "clusters", "probes", "listeners", "sounds", "space",
                   "musly", "robustness", "scores", "measure", "figures", "material", "parts", "seeds",
                   "report", "evaluate"],
    "service": ["options", "schema", "problems", "snapshots", "responses", "playlists", "api_keys"],
}  # fmt: skip
WITHOUT_TORCH = {
    "learning": ["runs", "split", "scale", "fusion", "models"],
    "search": ["build", "index", "ranking", "paths"],
    "service": ["ingress", "slots", "app", "api"],
}


def module_name(path: Path) -> str:
    """songray.search.ranking, or songray.search for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """The modules of songray that a module imports, and whether at its top."""
    tree = ast.parse(path.read_text())
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "songray":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = ROOT.joinpath(*name.split(".")).with_suffix(".py").exists()
                is_package = ROOT.joinpath(*name.split(".")).is_dir()
                names.append((name if is_module or is_package else str(node.module), node in tree.body))
        elif isinstance(node, ast.Import):
            names += [(a.name, node in tree.body) for a in node.names if a.name.split(".")[0] == "songray"]
    return names


def reading_order(package: Path) -> list[str]:
    """The modules that a package's docstring lists, one a line or several with commas."""
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    lines = [re.match(r"((?:\w+, )*\w+)(?:  +\S|$)", line) for line in doc.splitlines()]
    names = [name for match in lines if match for name in match[1].split(", ")]
    return [name for name in names if (package / name).is_dir() or (package / f"{name}.py").exists()]


def packages() -> list[Path]:
    return [path.parent for path in MODULES if path.name == "__init__.py" and reading_order(path.parent)]


@pytest.mark.parametrize("package", packages(), ids=module_name)
def test_the_reading_order_lists_every_module(package: Path) -> None:
    entries = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/*.py")
    }
    assert set(reading_order(package)) == entries - {"__init__", "__main__"}


@pytest.mark.parametrize("package", packages(), ids=module_name)
def test_imports_run_in_reading_order(package: Path) -> None:
    """Imports in functions, which only delay them, as well as those at the top."""
    order, base = reading_order(package), module_name(package) + "."
    for path in package.rglob("*.py"):
        importer = module_name(path).removeprefix(base).split(".")[0]
        if importer not in order:
            continue
        for name, _ in imports(path):
            imported = name.removeprefix(base).split(".")[0]
            if name.startswith(base) and imported != importer:
                assert order.index(imported) < order.index(importer), f"{path} imports {name}"


def loaded_by(modules: list[str], *names: str) -> list[str]:
    """Those of some top-level names that a fresh interpreter has loaded after it imported the modules."""
    code = f"import {', '.join(modules)}, sys; print([n for n in {sorted(names)} if n in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert output.returncode == 0, output.stderr
    loaded: list[str] = ast.literal_eval(output.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("package", WITHOUT_RAY)
def test_modules_run_without_ray(package: str) -> None:
    assert loaded_by([f"songray.{package}.{name}" for name in WITHOUT_RAY[package]], "ray") == []


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_modules_run_without_torch(package: str) -> None:
    assert loaded_by([f"songray.{package}.{name}" for name in WITHOUT_TORCH[package]], "torch") == []


def test_options_of_jobs_load_no_heavy_library() -> None:
    assert loaded_by(["songray.jobs"], *HEAVY) == []


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300 or str(path.relative_to(ROOT)) in LONG_FILES
    for function in functions(ast.parse(text)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        names = [a.arg for a in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]]
        assert lines <= 40, f"{function.name} has {lines} lines"
        assert len([name for name in names if name not in ("self", "cls")]) <= 7, function.name


def test_long_files_are_at_most_three() -> None:
    assert len(LONG_FILES) <= 3


STAGES = {
    "catalogue.crawl": "crawl", "audio.download": "download", "audio.transform": "transform",
    "learning.factorize": "factorize", "learning.train": "train", "learning.embed": "embed",
    "search.project": "project", "search.build": "index", "evaluation.evaluate": "evaluate",
}  # fmt: skip


@pytest.mark.parametrize(("module", "stage"), STAGES.items())
def test_a_stage_reads_from_top_to_bottom(module: str, stage: str) -> None:
    """The docstring names what it reads and writes; then come its options, and the stage before its
    helpers."""
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())
    docstring = ast.get_docstring(tree) or ""
    assert "eads " in docstring and ("writes" in docstring or "returns" in docstring)
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert names.index(f"{stage.capitalize()}Config") < names.index(stage)
    assert next(node.name for node in tree.body if isinstance(node, ast.FunctionDef)) == stage


def test_stages_do_not_call_each_other() -> None:
    for module in STAGES:
        path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
        others = {f"songray.{other}" for other in STAGES if other != module}
        assert not others & {name for name, _ in imports(path)}


def test_every_job_has_a_script_and_nothing_imports_one() -> None:
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == set(JOBS) and {kind.job for kind in TABLES.values()} <= scripts
    for path in MODULES:
        assert not re.search(r"^\s*(from|import) jobs\b", path.read_text(), re.MULTILINE)


def test_tables_have_the_fields_of_sources() -> None:
    columns = set(TABLES["tracks"].columns)
    assert {field.name for field in fields(Track)} - {"audio_version"} <= columns
    assert {field.name for field in fields(Artist)} <= set(TABLES["artists"].columns)
    assert {field.name for field in fields(PlaylistEntry)} <= set(TABLES["playlists"].columns)


def test_no_source_is_named_outside_its_own_module_and_the_registry() -> None:
    """But for the synthetic one, which the pipeline serves itself, and words such as folder and manifest."""
    names = set(SOURCE_NAMES) - {"synthetic", "folder", "manifest"}
    allowed = PACKAGE / "catalogue" / "sources"
    for path in MODULES:
        if allowed in path.parents:
            continue
        # Examples of ids in the API's documentation are no knowledge of a source.
        code = re.sub(r'"""(.|\n)*?"""|#.*|examples.*|.*"id": .*', "", path.read_text()).lower()
        assert not [name for name in names if re.search(rf"\b{name}\b", code)], path


def test_the_docstring_of_the_package_is_its_map() -> None:
    assert songray.__doc__ and songray.__doc__.startswith("Music recommended by how it sounds")
