"""The regression targets of a model: factors of tracks, or the vectors of another run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute

from songray.errors import InvalidOption, MissingInput
from songray.keys import REVISION_BITS, Keys, Only
from songray.learning import runs
from songray.learning.factorize import newest_version
from songray.learning.members import embeddings_of, read_vectors
from songray.learning.models.base import Embedder
from songray.learning.models.build import resolved
from songray.learning.models.config import ModelConfig
from songray.learning.models.options import DistilledConfig
from songray.library import Library

SAMPLE_FILES = 64  # of embeddings, at most, in which a sample lies


def completed(library: Library, config: ModelConfig) -> ModelConfig:
    """The options of a model, with what the files that they name say, or the length of the vectors of the run
    that it learns. Raises InvalidOption where no run is named or files cannot be used, MissingInput where the
    run has no vectors."""
    if not isinstance(config, DistilledConfig) or config.dimension:
        return resolved(config)
    if not config.teacher:
        others = ", ".join(runs.finished(library)) or "none"
        raise InvalidOption(f"--teacher is empty: name a run; the finished runs are {others}")
    table = embeddings_of(library, runs.choose(library, config.teacher).name)
    return dataclasses.replace(config, dimension=read_vectors(table, table.sample_keys(1)).shape[1])


def with_targets(library: Library, model: Embedder) -> Only | None:
    """The keys of the tracks that a model with targets learns from; None for all. Raises MissingInput where
    there are none."""
    if model.target is None:
        return None
    if (run := _teacher(model)) is not None:
        assert model.target_tracks is not None
        keys = embeddings_of(library, run).sample_keys(model.target_tracks, most_files=SAMPLE_FILES)
    else:
        keys = np.sort(newest_version(library.table(model.target))["track_key"].to_numpy())
    _check(model, keys)
    return lambda interval: keys


def targets_of(library: Library, model: Embedder, keys: Keys) -> pa.Table:
    """`track_key` and `target` of those of the tracks that have one. Raises MissingInput where none has."""
    assert model.target is not None
    if (run := _teacher(model)) is not None:
        rows = embeddings_of(library, run).newest_rows(np.unique(keys) >> REVISION_BITS, ["embedding"])
        rows = rows.filter(pa.array(np.isin(rows["track_key"].to_numpy(), keys)))
        _check(model, rows["track_key"].to_numpy())
        return rows.rename_columns(["track_key", "target"])
    rows = newest_version(library.table(model.target))
    rows = rows.filter(pa.compute.is_in(rows["track_key"], pa.array(keys)))
    _check(model, rows["track_key"].to_numpy())
    return pa.table({"track_key": rows["track_key"], "target": rows["factors"]})


def _teacher(model: Embedder) -> str | None:
    """The run whose embeddings are the targets; None where they are factors."""
    kind, _, name = (model.target or "").partition("/")
    return name if kind == "embeddings" else None


def _check(model: Embedder, keys: Keys) -> None:
    if not keys.size:
        job = "factorize" if _teacher(model) is None else "embed"
        raise MissingInput(f"{model.target} has none of the tracks to learn from: run `songray {job}` first")
