from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.evaluation.clusters import cluster
from songray.evaluation.evaluate import Evaluation
from songray.evaluation.metrics import nearest, score


def tracks(*labels: tuple[str | None, list[str], list[str]]) -> list[dict[str, object]]:
    return [{"recording": one, "artist_ids": two, "genres": three} for one, two, three in labels]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_scores_by_hand() -> None:
    vectors = unit(np.array([[1, 0], [1, 0.1], [0, 1], [0.5, 1]]))
    scores = score(vectors, tracks(("r", ["A"], []), ("r", ["B"], []), ("s", ["A"], []), ("t", ["C"], [])), 2)
    recording, artist = scores  # no genre is shared, so there is nothing to say of it
    assert (recording.label, recording.queries, recording.first) == ("recording", 2, 1.0)
    assert recording.chance == pytest.approx(1 / 3)
    assert (artist.queries, artist.first, artist.precision) == (2, 0.0, 0.0)


def test_precision_counts_no_more_places_than_could_match() -> None:
    vectors = unit(np.array([[1, 0], [1, 0.01], [1, 0.5], [0, 1]]))
    (recording,) = score(vectors, tracks(("r", [], []), ("r", [], []), ("s", [], []), ("t", [], [])), 3)
    assert (recording.first, recording.precision) == (1.0, 1.0)


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 99))
def test_neighbours_are_the_nearest_and_never_itself(count: int, k: int, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(count, 4)))
    k = min(k, count - 1)
    found = nearest(vectors, k)
    cosines = vectors @ vectors.T
    for number, row in enumerate(found):
        assert number not in row
        others = np.delete(cosines[number], number)
        assert np.allclose(cosines[number][row], np.sort(others)[::-1][:k], atol=1e-6)


def test_average_precision_by_hand() -> None:
    degrees = np.radians([0, 10, 30, 34])
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    (recording,) = score(vectors, tracks(("r", [], []), ("s", [], []), ("r", [], []), ("r", [], [])), 1)
    assert recording.first == pytest.approx(2 / 3)
    from_the_first = (1 / 2 + 2 / 3) / 2  # s r r
    from_another = (1 / 1 + 2 / 3) / 2  # r s r
    by_hand = [from_the_first, from_another, from_another]
    assert recording.average_precision == pytest.approx(np.mean(by_hand))


def test_clusters_agree_with_separate_genres_and_not_with_random_ones() -> None:
    random = np.random.default_rng(0)
    genres = [[f"g{number % 3}"] for number in range(90)] + [[]]
    apart = unit(np.eye(3)[np.arange(91) % 3] + random.normal(0, 0.05, (91, 3)))
    found = cluster(apart, genres)
    assert found is not None and (found.genres, found.v_measure, found.mutual_information) == (3, 1.0, 1.0)
    at_random = cluster(unit(random.normal(size=(91, 3))), genres)
    assert at_random is not None and abs(at_random.mutual_information) < 0.1
    assert cluster(apart, [["g"]] * 91) is None


def test_a_table_without_rows_is_a_sentence() -> None:
    text = str(Evaluation(5, 10, {"mfcc": []}, {}))
    assert text.startswith("evaluate: no two of the 5 tracks share a known recording, artist or genre")
    assert "|" not in text
