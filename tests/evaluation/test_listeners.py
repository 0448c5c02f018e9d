"""Playlists whose continuations and communities are known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_vectors import around, rows
from sklearn.metrics import adjusted_mutual_info_score, ndcg_score

from songray.evaluation.listeners import (
    Communities,
    Listening,
    agreement,
    communities,
    compare_communities,
    continuations,
    read_listening,
)
from songray.evaluation.sample import Sample
from songray.library import Library

CLASSES = np.arange(60) % 3
SAMPLE = Sample(np.arange(60), rows(60, 20, 3))


def fill_playlists(library: Library, count: int = 60) -> None:
    """Playlists of one class each, in random order; some of their tracks are not in the sample."""
    random, entries = np.random.default_rng(0), []
    for number in range(count):
        own = np.flatnonzero(number % 3 == CLASSES)
        for position, track in enumerate(random.permutation(own)[:8].tolist()):
            entries.append((number, position, f"t:{track}"))
        entries.append((number, 8, f"other:{number}"))
    columns = {"playlist_id": [f"p:{number}" for number, _, _ in entries],
               "position": [position for _, position, _ in entries],
               "track_id": [track for _, _, track in entries]}  # fmt: skip
    table = library.table("playlists")
    fixed = {"playlist": "P", "crawl": 1, "version": "v"}
    stored = [
        dict(zip(columns, values, strict=True)) | fixed for values in zip(*columns.values(), strict=True)
    ]
    table.append(pa.Table.from_pylist(stored, table.schema()), "000001")


def test_vectors_of_playlists_continue_them_and_random_ones_do_not(library: Library) -> None:
    fill_playlists(library)
    listening = read_listening(library, SAMPLE)
    assert listening is not None and 10 <= len(listening.continued) <= 30
    assert listening.known.shape[0] + len(listening.continued) == 60
    assert all(len(own) == 8 for own in listening.continued)
    good = agreement(around(CLASSES, 0.1), listening, SAMPLE)
    poor = agreement(around(np.arange(60), 0.1), listening, SAMPLE)
    for task in ("playlist-continuation", "playlist-continuation-of-rare-tracks"):
        assert good[task].values["r_precision"].mean() > 0.15 > poor[task].values["r_precision"].mean()
        assert good[task].values["clicks"].mean() < poor[task].values["clicks"].mean()
    task = "collaborative-neighbours"
    assert good[task].values["overlap"].mean() > 0.3 > poor[task].values["overlap"].mean()
    assert good[task].chance == pytest.approx(10 / 59)


def test_too_few_playlists_are_none(library: Library) -> None:
    assert read_listening(library, SAMPLE) is None
    fill_playlists(library, 6)
    assert read_listening(library, SAMPLE) is None


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 5))
def test_continuations_have_the_values_of_scikit_learn(seed: int, given_tracks: int, others: int) -> None:
    random = np.random.default_rng(seed)
    vectors = around(np.arange(30), 0.3, seed=seed)
    playlist = random.permutation(30)[: 2 * max(given_tracks, others)]
    listening = Listening(None, [playlist], np.arange(30), vectors)  # type: ignore[arg-type]
    (found,) = continuations(vectors, listening, [np.ones(30, bool)])
    assert found is not None
    first, rest = np.split(playlist, [len(playlist) // 2])
    candidates = np.setdiff1d(np.arange(30), first)
    cosines = vectors[candidates] @ vectors[first].mean(axis=0)
    is_relevant = np.isin(candidates, rest)
    assert found.values["ndcg"][0] == pytest.approx(ndcg_score(is_relevant[None], cosines[None]))
    ranked = is_relevant[np.argsort(-cosines, kind="stable")]
    assert found.values["r_precision"][0] == pytest.approx(ranked[: len(rest)].mean())
    assert found.values["clicks"][0] == np.flatnonzero(ranked)[0] // 10
    assert found.chance == pytest.approx(len(rest) / len(candidates))


def test_communities_of_playlists_are_the_classes(library: Library) -> None:
    pytest.importorskip("igraph")
    fill_playlists(library)
    listening = read_listening(library, SAMPLE)
    assert listening is not None
    bridge = np.zeros((1, 60), np.float32)
    bridge[0, :4] = 1  # joins the classes to one component
    joined = type(listening.known)(np.concatenate([listening.known.toarray(), bridge]))
    found = communities(Listening(joined, listening.continued, listening.factored, listening.factors))
    assert found is not None and len(found.tracks) > 50
    for method in found.labels:
        assert adjusted_mutual_info_score(found.labels[method], CLASSES[found.tracks]) > 0.9
        assert not found.remark(method)
    scores = compare_communities(around(CLASSES, 0.1), found)
    assert scores["Leiden: AMI"] > 0.9 and scores["Leiden: communities"] == 3


def test_degenerate_communities_are_recognised() -> None:
    labels = np.array([0] * 95 + [1] * 5)
    found = Communities(np.arange(100), {"Leiden": labels})
    assert found.remark("Leiden") == "Leiden: degenerate, 95 of 100 tracks are in one community"
