"""The regression targets of a model: factors of tracks, or the vectors of another run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute

from songray.errors import InvalidOption, MissingInput
from songray.keys import Keys
from songray.learning import runs
from songray.learning.factorize import newest_version
from songray.learning.fusion import EmbeddedTracks
from songray.learning.models.base import Embedder
from songray.learning.models.options import DistilledConfig, ModelConfig
from songray.library import Library

SAMPLE_FILES = 64  # of embeddings, at most, in which a sample lies


def with_dimension(library: Library, config: ModelConfig) -> ModelConfig:
    """The options of a model; those of a student with the length of the vectors that it learns. Raises
    InvalidOption where no run is named, MissingInput where the run has no vectors."""
    if not isinstance(config, DistilledConfig) or config.dimension:
        return config
    if not config.teacher:
        others = ", ".join(runs.finished(library)) or "none"
        raise InvalidOption(f"--teacher is empty: name a run; the finished runs are {others}")
    embedded = EmbeddedTracks.of(library, runs.choose(library, config.teacher).name)
    return dataclasses.replace(config, dimension=embedded.vectors(embedded.keys[:1]).shape[1])


def target_keys(library: Library, model: Embedder) -> Keys | None:
    """The keys of the tracks that a model with targets learns from; None for all. Raises MissingInput."""
    if model.target is None:
        return None
    keys: Keys = targets_of(library, model)["track_key"].to_numpy()
    return keys


def targets_of(library: Library, model: Embedder, keys: Keys | None = None) -> pa.Table:
    """`track_key` and `target` of the tracks with these keys, by default of all that the model learns from.

    Raises MissingInput where there are none.
    """
    assert model.target is not None
    kind, _, name = model.target.partition("/")
    if kind == "embeddings":
        embedded = EmbeddedTracks.of(library, name)
        sample = embedded.sample(model.target_tracks or len(embedded.keys), SAMPLE_FILES)
        chosen = sample if keys is None else np.intersect1d(sample, keys)
        targets = pa.table({"track_key": chosen, "target": embedded.rows(chosen, ["embedding"])["embedding"]})
    else:
        rows = newest_version(library.table(model.target))
        rows = rows if keys is None else rows.filter(pa.compute.is_in(rows["track_key"], pa.array(keys)))
        targets = pa.table({"track_key": rows["track_key"], "target": rows["factors"]})
    if not targets.num_rows:
        job = "embed" if kind == "embeddings" else "factorize"
        raise MissingInput(f"{model.target} has none of the tracks to learn from: run `songray {job}` first")
    return targets
