"""Embeddings: what is written, and what is not computed again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from stored_spectrograms import store_spectrograms

from songray.audio.spectrograms import SPECS, from_bytes
from songray.errors import MissingInput
from songray.learning import encoder
from songray.learning.embed import EmbedConfig, embed
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, train
from songray.library import Library, matrix


@pytest.mark.usefixtures("cluster")
def test_pending_tracks_get_the_unit_vector_of_their_clip_alone(library: Library) -> None:
    store_spectrograms(library, 40)
    run = train(library, "mfcc", MODELS["mfcc"](), TrainConfig(pooling="mean+deviation"))
    assert embed(library, EmbedConfig()).done == 40
    rows = library.table("embeddings", run.name).read()
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), 80)
    vectors = matrix(rows["embedding"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    loaded = encoder.load(library, run)
    (first,) = library.table("spectrograms", "default").read().slice(0, 1).to_pylist()
    alone = loaded.encode({"mel128": [from_bytes(first["mel128"], SPECS["mel128"])]})[0]
    written = vectors[rows["track_key"].to_pylist().index(first["track_key"])]
    assert np.abs(alone - written).max() < 1e-5
    store_spectrograms(library, 5, first=40)
    summary = embed(library, EmbedConfig(run=run.name))
    assert (summary.existing, summary.done) == (40, 5)


def test_without_a_run_nothing_is_embedded(library: Library) -> None:
    with pytest.raises(MissingInput, match="no finished run: run `songray train` first"):
        embed(library, EmbedConfig())
