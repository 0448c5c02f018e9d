"""Adaptation: it is done where held-out artists show a gain, and only there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import InvalidOption
from songray.keys import track_key
from songray.learning import fusion, runs
from songray.learning.adapt import AdaptationConfig, Sample, adapt, interval, r_precision
from songray.learning.embed import EmbedConfig, embed
from songray.learning.runs import Run
from songray.learning.scale import unit, within_class_projection
from songray.library import Library, Vectors, matrix

TRACKS = 8  # of each artist


def of_artists(artists: int, nuisance: float, seed: int = 0) -> Vectors:
    """Vectors, (artists × TRACKS, 12), that say little of their artist where the first two numbers, which
    vary from track to track, are large."""
    random, tracks = np.random.default_rng(seed), artists * TRACKS
    vectors = np.repeat(random.normal(size=(artists, 12)), TRACKS, axis=0) + random.normal(size=(tracks, 12))
    vectors[:, :2] = random.normal(size=(tracks, 2)) * nuisance
    return unit(vectors)


def add(library: Library, vectors: Vectors, run: str = "base", artists: bool = True) -> None:
    counts = {"train": 1, "validation": 1}
    runs.save_record(library, Run(run, "mfcc", {}, {}, "default", counts, "", {}, {}, []))
    ids = [f"t:{number}" for number in range(len(vectors))]
    keys = [track_key(track_id, 0) for track_id in ids]
    tracks = library.table("tracks")
    rows = [
        {"track_key": key, "track_id": name, "crawl": 1, "artist_ids": [f"a{n // TRACKS}"] if artists else []}
        for n, (key, name) in enumerate(zip(keys, ids, strict=True))
    ]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), "1")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    embedded = pa.table({"track_key": pa.array(keys), "track_id": ids, "embedding": column})
    library.table("embeddings", run).append(embedded, "1")


@pytest.mark.usefixtures("cluster")
def test_a_run_is_adapted_where_tracks_of_an_artist_differ_in_some_directions(library: Library) -> None:
    vectors = of_artists(30, nuisance=6)
    add(library, vectors)
    adapted = adapt(library, AdaptationConfig(base="base"))
    assert adapted.run is not None and adapted.difference is not None and adapted.difference[1] > 0.05
    assert adapted.run.members == {"base": 1.0}
    assert f"run {adapted.run.name} adapts base: on 240 tracks of 30 artists" in str(adapted)
    assert adapt(library, AdaptationConfig(base="base")).run == adapted.run
    assert embed(library, EmbedConfig(run=adapted.run.name)).done == 240
    rows = library.table("embeddings", adapted.run.name).newest(["track_key", "embedding"]).rows
    stored = matrix(rows["embedding"])
    order = np.argsort([track_key(f"t:{number}", 0) for number in range(240)])
    directions = fusion.load(library, adapted.run).directions
    assert np.abs(stored - unit(vectors[order] @ directions)).max() < 1e-5


def test_a_run_is_kept_where_adaptation_gains_nothing(library: Library) -> None:
    add(library, of_artists(30, nuisance=1))
    kept = adapt(library, AdaptationConfig(base="base"))
    assert kept.run is None and kept.difference is not None and kept.difference[1] <= 0
    assert "kept base: on 240 tracks of 30 artists, each held out once, the R-precision by artist" in str(
        kept
    )
    assert runs.finished(library) == ["base"]


@pytest.mark.parametrize(("artists", "known"), [(9, True), (30, False)])
def test_few_artists_cannot_be_judged(library: Library, artists: int, known: bool) -> None:
    add(library, of_artists(artists, nuisance=6), artists=known)
    kept = adapt(library, AdaptationConfig(base="base"))
    assert kept.run is None
    assert f"kept base: {artists if known else 0} artists have two tracks or more" in str(kept)


def test_a_base_is_named(library: Library) -> None:
    with pytest.raises(InvalidOption, match="--base is empty: name the run to adapt"):
        adapt(library, AdaptationConfig())


def test_r_precision_leaves_out_the_same_recording() -> None:
    vectors = unit(np.array([[1, 0], [1, 0.01], [1, 0.1], [0, 1], [1, 0.2]]))
    artists = np.array(["a", "a", "a", "b", "b"])
    recordings = np.array(["x", "x", "", "", ""])
    values = r_precision(vectors, Sample(np.arange(5), vectors, artists, recordings))
    assert values.tolist() == [1, 1, 0.5, 1, 0]
    alone = r_precision(vectors[:2], Sample(np.arange(2), vectors[:2], artists[:2], recordings[:2]))
    assert np.isnan(alone).all()


@given(st.integers(2, 20), st.integers(0, 100))
def test_the_interval_holds_the_mean_and_narrows_to_it_for_equal_artists(artists: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=artists * 3).astype(np.float32)
    names = np.repeat([f"a{number}" for number in range(artists)], 3)
    mean, low, high = interval(values, names)
    assert low <= mean <= high
    mean, low, high = interval(np.ones_like(values), names)
    assert mean == low == high == 1


def test_directions_in_which_a_class_varies_count_less() -> None:
    vectors = of_artists(40, nuisance=6)
    projected = vectors @ within_class_projection(vectors, np.repeat(np.arange(40), TRACKS).astype(str))
    before, after = vectors.std(axis=0), projected.std(axis=0)
    assert (after / before)[:2].max() < (after / before)[2:].min()
