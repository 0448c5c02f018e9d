"""The record of a run: stored, found, chosen, and readable under the names of earlier versions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from songray.errors import CorruptData, InvalidOption, MissingInput
from songray.learning import runs
from songray.learning.models.formats import stored_options
from songray.learning.models.options import MODELS, ALIConfig, ContrastiveConfig
from songray.learning.runs import Run
from songray.learning.train import TrainConfig
from songray.library import Library


def record(name: str = "r", model: str = "mfcc", **fields: object) -> Run:
    empty = {"model_config": {}, "config": {}, "tracks": {}, "made_with": {}, "metrics": {}, "curve": []}
    return Run(name, model, **empty | {"set": "default", "data": ""} | fields)


def test_a_run_is_found_as_it_was_saved(library: Library) -> None:
    assert runs.find(library, "r") is None
    run = record(curve=[{"epoch": 1.0, "loss": 0.5}], stopped="stopped after 30 s")
    runs.save_record(library, run)
    assert runs.find(library, "r") == run
    assert Path(library.path("runs", "r", "curve.parquet")).exists()


def test_a_name_chooses_among_finished_runs(library: Library) -> None:
    with pytest.raises(MissingInput, match="no finished run: run `songray train` first"):
        runs.choose(library, "")
    Path(library.path("runs", "unfinished")).mkdir(parents=True)
    runs.save_record(library, record("first"))
    assert runs.choose(library, "").name == "first"
    runs.save_record(library, record("second"))
    assert runs.finished(library) == ["first", "second"]
    assert runs.choose(library, "second").name == "second"
    with pytest.raises(InvalidOption, match="--run is empty and 2 runs exist: choose one of first, second"):
        runs.choose(library, "")
    with pytest.raises(InvalidOption, match="--run third: no such run exists"):
        runs.choose(library, "third")


def test_options_are_read_under_the_names_of_an_earlier_version(library: Library) -> None:
    options = asdict(ALIConfig(generator_steps=2))
    runs.save_record(library, record(model="ali", model_config=stored_options(options)))
    content = json.loads(Path(library.path("runs", "r", "run.json")).read_text())
    assert content["model_config"]["generator_turns"] == 2
    found = runs.choose(library, "r")
    assert found.model_config == options
    assert runs.model_config(found) == ALIConfig(generator_steps=2)


def test_lists_of_json_are_tuples_again(library: Library) -> None:
    runs.save_record(library, record(model="contrastive", model_config=asdict(ContrastiveConfig())))
    assert runs.model_config(runs.choose(library, "")) == ContrastiveConfig()


def test_a_model_of_another_version_is_reported() -> None:
    with pytest.raises(CorruptData, match="run r: unknown model lstm; this songray has contrastive, factors"):
        runs.model_config(record(model="lstm"))


# As the version before this one named them: a name that changes would train an existing model again.
DEFAULT_NAMES = {
    "contrastive": "contrastive-ba2679d8",
    "factors": "factors-234eddbf",
    "cae": "cae-b07dafca",
    "cae2d": "cae2d-7e2fd0b3",
    "dualaxis": "dualaxis-fdede541",
    "vae": "vae-3af62181",
    "ali": "ali-321133e8",
    "infogan": "infogan-c5d27e18",
    "mfcc": "mfcc-d42a3d6f",
    "pca": "pca-1c4009d6",
    "random": "random-5a1d9527",
    "raw": "raw-235995cb",
}


@pytest.mark.parametrize("model", DEFAULT_NAMES)
def test_default_names_of_existing_options_stay(model: str) -> None:
    options = stored_options(asdict(MODELS[model]()))
    stored = {"model": model, "model_config": options, "config": TrainConfig().result_options}
    assert runs.default_name(model, stored) == DEFAULT_NAMES[model]


def test_software_versions_are_those_that_are_installed() -> None:
    assert runs.software_versions()["torch"].startswith("2.")
