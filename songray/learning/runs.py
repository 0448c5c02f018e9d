"""The record of a run: what a training stores, and how a run is found again.

runs/<run>/split.parquet      the tracks of the training and the validation part
runs/<run>/train/             Ray Train's checkpoints, from which an interrupted training resumes
runs/<run>/tensorboard/       the curve as it grows, for TensorBoard
runs/<run>/curve.parquet      one row an epoch: losses, learning rate, throughput, norm of the gradient
runs/<run>/model.safetensors  weights, and the scale of the vectors: their mean and a projection; of a run
                              that joins others, their weights and the directions to which it projects
runs/<run>/run.json           options, data, code and metrics; written last, so a run without it is unfinished
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Any, Literal

import pyarrow as pa

from songray import storage
from songray.errors import CorruptData, InvalidOption, MissingInput
from songray.learning.models import MODELS, ModelConfig
from songray.learning.models.formats import current_options
from songray.library import Library
from songray.storage import read_json, write_json, write_parquet

Pooling = Literal["mean", "mean+deviation"]
# What a run that joins other runs, or projects the vectors of another one, has in place of a model.
FUSION, ADAPTATION = "fusion", "adaptation"


@dataclass(frozen=True)
class Run:
    """The content of run.json: the names of these fields are stored."""

    name: str
    model: str  # a key of MODELS, FUSION or ADAPTATION
    model_config: dict[str, Any]
    config: dict[str, Any]  # the options of the training
    set: str  # of spectrograms
    tracks: dict[str, int]  # number of tracks in the parts "train" and "validation"
    data: str  # SHA-256 of their keys
    made_with: dict[str, str]  # software versions
    metrics: dict[str, float]  # of the epoch whose weights were kept
    curve: list[dict[str, float]]  # the metrics of all epochs
    stopped: str = ""  # reason why training ended before its last epoch, or ""

    def __str__(self) -> str:
        if self.model == ADAPTATION:
            (base,) = self.members
            return f"train: run {self.name} adapts {base}, fitted on {self.tracks['train']} tracks"
        if self.members:
            joined = ", ".join(f"{name} ({weight:g})" for name, weight in self.members.items())
            fitted, numbers = self.tracks["train"], self.model_config["dimension"]
            reduced = f"reduced to {numbers} numbers, fitted on {fitted} tracks" if fitted else "not reduced"
            return f"train: run {self.name} joins {joined}; {reduced}"
        text = f"train: run {self.name}: {self.tracks['train']} tracks, {self.tracks['validation']} held out"
        if licence := self.model_config.get("license"):
            text += f"; weights of the licence {licence}"
        if not self.metrics:
            return f"{text}; only the scale of the vectors was fitted"
        last, best = self.curve[-1], self.metrics
        quality = f"loss {best['validation_loss']:.5f}"
        if "validation_unexplained" in best:
            quality += f", {best['validation_unexplained']:.1%} of the variance unexplained"
        return (
            f"{text}; {last['epoch']:.0f} epochs, {last['steps']:.0f} steps, {last['seconds']:.0f} s"
            f"{self.stopped and f' ({self.stopped})'}; "
            f"epoch {best['epoch']:.0f} was kept, on the tracks held out: {quality}"
        )

    @property
    def pooling(self) -> Pooling:
        pooling: Pooling = self.config.get("pooling", "mean")
        return pooling

    @property
    def members(self) -> dict[str, float]:
        """The weights of the runs that this one joins, by name; none where it is a model's."""
        return self.model_config["members"] if self.model in (FUSION, ADAPTATION) else {}


def find(library: Library, name: str) -> Run | None:
    """The finished run of that name, or None."""
    content = read_json(library.filesystem, record_path(library, name))
    if not content:
        return None
    return Run(**content | {"model_config": current_options(content["model_config"])})


def finished(library: Library) -> list[str]:
    """Names of the finished runs, sorted."""
    return [name for name in library.folders("runs") if find(library, name)]


def choose(library: Library, name: str) -> Run:
    """The run of that name; "" chooses the only one that exists.

    Raises MissingInput where no run is finished, InvalidOption where the name does not decide.
    """
    names = finished(library)
    if not names:
        raise MissingInput("there is no finished run: run `songray train` first")
    if not name and len(names) > 1:
        raise InvalidOption(f"--run is empty and {len(names)} runs exist: choose one of {', '.join(names)}")
    run = find(library, name or names[0])
    if run is None:
        raise InvalidOption(f"--run {name}: no such run exists; the finished runs are {', '.join(names)}")
    return run


def member(library: Library, run: Run, name: str) -> Run:
    """A run that another one joins. Raises MissingInput where it is no more."""
    if (found := find(library, name)) is None:
        raise MissingInput(f"run {run.name} joins the run {name}, which no longer exists: join others anew")
    return found


def tags_of(library: Library, run: Run) -> tuple[str, ...]:
    """The tags of the sound whose probabilities a run gives, in the order of the column `tags` of its
    embeddings: those of its model; where it joins runs, those of all of them, each once."""
    if not run.members:
        return MODELS[run.model].tags if run.model in MODELS else ()
    return each_once([tags_of(library, member(library, run, name)) for name in run.members])


def each_once(members: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The tags of several runs, each once, in the order in which they occur first."""
    return tuple(dict.fromkeys(chain.from_iterable(members)))


def save_record(library: Library, run: Run) -> None:
    """Write curve.parquet, and then run.json, which marks the run as finished."""
    library.filesystem.create_dir(library.path("runs", run.name), recursive=True)
    if run.curve:
        rows = pa.Table.from_pylist(run.curve)
        write_parquet(library.filesystem, library.path("runs", run.name, "curve.parquet"), rows)
    write_json(library.filesystem, record_path(library, run.name), dataclasses.asdict(run))


def claim(library: Library, name: str, options: dict[str, Any]) -> None:
    """Store the options of a run beside it. Raises Conflict where other options are stored."""
    storage.claim(library.filesystem, library.path("runs", name), options)


def record_path(library: Library, name: str) -> str:
    return library.path("runs", name, "run.json")


def split_path(library: Library, name: str) -> str:
    return library.path("runs", name, "split.parquet")


def weights_path(library: Library, name: str) -> str:
    return library.path("runs", name, "model.safetensors")


def default_name(model: str, *options: Any) -> str:
    """The model and a hash of all options, under their stored names, on which the result depends."""
    text = json.dumps(options, sort_keys=True)
    return f"{model}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def model_config(run: Run) -> ModelConfig:
    """The options of the run's model. Raises CorruptData where this version does not have the model."""
    if run.model not in MODELS:
        raise CorruptData(f"run {run.name}: unknown model {run.model}; this songray has {', '.join(MODELS)}")
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in run.model_config.items()}
    return MODELS[run.model](**options)


def software_versions() -> dict[str, str]:
    """Versions of the packages on which a result depends."""
    names = ("songray", "torch", "ray", "librosa", "soundfile", "soxr", "numpy", "transformers")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # songray itself need not be installed on a cluster
        return "not installed"
