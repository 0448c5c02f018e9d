"""Retrieval whose values are known, and the scores of runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_vectors import unit
from sklearn.metrics import average_precision_score, ndcg_score

from songray.errors import InvalidOption, StageFailed
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.evaluation.intervals import Observations, estimate
from songray.evaluation.metrics import TASKS, Task, metrics, nearest, retrieval
from songray.evaluation.scores import Evaluation, score
from songray.keys import track_key
from songray.learning import runs
from songray.learning.runs import Run
from songray.library import Library, Row, Vectors


def tracks(*labels: tuple[str | None, str | None, list[str], list[str]]) -> list[Row]:
    names = ("recording", "album_id", "artist_ids", "genres")
    return [dict(zip(names, values, strict=True)) for values in labels]


def on_circle(*degrees: float) -> Vectors:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_values_by_hand() -> None:
    """The first track ranks s r r, the third s r r too, and the last r s r."""
    labels = tracks(*[(name, None, [], []) for name in "rsrr"])
    (found,) = retrieval(on_circle(0, 10, 30, 34), labels, 2).values()
    assert found.queries.tolist() == [0, 2, 3]
    assert found.values["nearest"].tolist() == [0, 1, 1]
    assert found.values["r_precision"].tolist() == [0.5, 0.5, 0.5]
    assert found.values["average_precision"] == pytest.approx([(1 / 2 + 2 / 3) / 2, *[(1 + 2 / 3) / 2] * 2])
    assert found.chance == pytest.approx(2 / 3)


def test_what_is_left_out_is_neither_relevant_nor_ranked() -> None:
    """By genre, the first two tracks, which are by one artist, leave each other out."""
    labels = tracks((None, None, ["A"], ["g"]), (None, None, ["A"], ["g"]), (None, None, ["B"], ["h"]),
                    (None, None, ["C"], ["g"]))  # fmt: skip
    found = retrieval(on_circle(0, 1, 20, 30), labels, 2)
    assert set(found) == {Task("artist"), Task("genre"), Task("genre", "artist")}
    assert found[Task("genre")].values["nearest"].tolist() == [1, 1, 0]
    assert found[Task("genre", "artist")].values["nearest"].tolist() == [0, 0, 0]
    assert found[Task("genre", "artist")].values["average_precision"].tolist() == [
        0.5,
        0.5,
        (1 / 2 + 2 / 3) / 2,
    ]
    assert found[Task("genre", "artist")].chance == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3)


def test_tracks_of_related_artists_are_relevant_and_those_of_the_same_artist_left_out() -> None:
    """A and B are related, and so are B and C; A has two tracks, which come first for each other."""
    pairs = {"A": ["A B"], "B": ["A B", "B C"], "C": ["B C"], "D": []}
    rows = [row | {"related": pairs[row["artist_ids"][0]]} for row in tracks(
        *[(None, None, [name], []) for name in "AABCD"])]  # fmt: skip
    found = retrieval(on_circle(0, 1, 10, 14, 13), rows, 2)
    related = found[Task("related-artist", "artist")]
    assert related.queries.tolist() == [0, 1, 2, 3]
    assert related.values["nearest"].tolist() == [1, 1, 0, 0]  # D is nearer to B, and to C


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(any), st.integers(1, 12))
def test_metrics_are_those_of_scikit_learn(relevant: list[bool], k: int) -> None:
    is_relevant = np.array([relevant])
    found = metrics(is_relevant, np.ones_like(is_relevant), k)
    descending = -np.arange(len(relevant), dtype=float)[None]
    assert found["ndcg"][0] == pytest.approx(ndcg_score(is_relevant, descending, k=k))
    assert found["average_precision"][0] == pytest.approx(average_precision_score(relevant, descending[0]))
    count = sum(relevant)
    assert found["precision"][0] == pytest.approx(sum(relevant[: min(k, count)]) / min(k, count))
    assert found["r_precision"][0] == pytest.approx(sum(relevant[:count]) / count)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30), st.integers(1, 12))
def test_tracks_that_are_no_candidates_change_nothing(ranked: list[tuple[bool, bool]], k: int) -> None:
    is_candidate = np.array([[candidate for _, candidate in ranked]])
    is_relevant = np.array([[relevant for relevant, _ in ranked]]) & is_candidate
    if is_relevant.any():
        found = metrics(is_relevant, is_candidate, k)
        kept = is_relevant[is_candidate][None]
        for name, values in metrics(kept, np.ones_like(kept), k).items():
            assert found[name] == pytest.approx(values)


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


def test_random_labels_are_found_by_chance_within_the_interval() -> None:
    """Of 100 permutations of the labels, about 95 intervals contain the chance level."""
    random, covered = np.random.default_rng(0), 0
    vectors = unit(random.normal(size=(200, 8)))
    for _ in range(100):
        genres = random.integers(0, 4, len(vectors))
        labels = tracks(*[(None, None, [f"a{n % 50}"], [f"g{genre}"]) for n, genre in enumerate(genres)])
        found = retrieval(vectors, labels, 10)[Task("genre")]
        interval = estimate(found.values["r_precision"], found.queries % 50)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= found.chance <= interval.high
    assert 90 <= covered <= 99


def test_an_interval_ends_where_the_metric_does() -> None:
    groups, almost_all = np.arange(40) // 2, np.array([1.0] * 39 + [0.0])
    values = {"nearest": almost_all, "clicks": almost_all * 3}
    (one,) = score({"artist": Observations(values, groups)})
    unbounded = estimate(almost_all, groups)
    assert unbounded.high is not None and unbounded.high > 1
    assert (one.metrics["nearest"].low, one.metrics["nearest"].high) == (unbounded.low, 1.0)
    assert one.metrics["clicks"] == estimate(values["clicks"], groups)


def test_a_table_without_rows_is_a_sentence() -> None:
    text = str(Evaluation(5, 10, {"mfcc": []}))
    assert text.startswith("evaluate: no two of the 5 tracks share a known recording, album, artist or genre")
    assert "|" not in text


def fill(library: Library, artists: int) -> None:
    """Tracks of artists who cluster in the vectors of the run good, less so in fair, and not in poor."""
    random, rows = np.random.default_rng(0), []
    for number in range(4 * artists):
        track_id = f"t:{number}"
        rows.append(
            {"track_key": track_key(track_id, 0), "track_id": track_id, "crawl": 1,
             "artist_ids": [f"a:{number % artists}"], "genres": [f"g{number % 2}"]}
        )  # fmt: skip
    table = library.table("tracks")
    table.append(pa.Table.from_pylist(rows, table.schema()), "000001")
    centres = random.normal(size=(artists, 16))
    for name, noise in (("good", 0.3), ("fair", 1.0), ("poor", 99.0)):
        runs.save_record(library, Run(name, "mfcc", {}, {}, "default", {}, "", {}, {}, []))
        vectors = unit(
            centres[np.arange(4 * artists) % artists] + random.normal(size=(4 * artists, 16)) * noise
        )
        columns = {
            "track_key": [row["track_key"] for row in rows],
            "track_id": [row["track_id"] for row in rows],
            "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 16),
        }
        library.table("embeddings", name).append(pa.table(columns), "000001")


def test_runs_are_compared_and_the_worse_ones_refused(library: Library, tmp_path: Path) -> None:
    fill(library, artists=30)
    config = EvaluateConfig(parts=("retrieval",), baseline="fair", output=str(tmp_path / "report"))
    found = evaluate(library, config)
    good, poor = found.verdicts()
    assert good.startswith("good beside fair, retrieval: is better on R-precision by artist +")
    assert poor.startswith("poor beside fair, retrieval: is worse on R-precision by artist -")
    assert "genre without artist" in str(found) and "…" in str(found)
    with pytest.raises(StageFailed, match=r"poor: artist r_precision differs from that of fair by -"):
        found.check("artist r_precision", 0)
    evaluate(library, EvaluateConfig(runs=("good", "fair"), baseline="fair")).check("artist r_precision", 0)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    rows = pa.parquet.read_table(tmp_path / "report" / "scores.parquet").to_pylist()
    assert report["scores"] == rows and {row["run"] for row in rows} == {"good", "fair", "poor"}
    (row,) = (
        row for row in rows if (row["run"], row["task"], row["metric"]) == ("poor", "artist", "nearest")
    )
    assert row["difference_high"] < 0 and row["p"] < 0.01 and row["low"] < row["mean"] < row["high"]


def test_few_artists_give_no_interval_and_the_reason(library: Library) -> None:
    fill(library, artists=9)
    found = evaluate(library, EvaluateConfig(baseline="fair"))
    assert "no intervals: fewer than 10 artists have two of the tracks" in str(found) and "…" not in str(
        found
    )
    with pytest.raises(StageFailed, match="good: too few tracks or artists for an interval"):
        found.check("artist nearest", -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "tempo nearest"}, "--metric 'tempo nearest': choose from recording nearest, "),
        ({"fail_below": 0.0}, "--fail-below needs a --baseline"),
        (
            {"baseline": "x", "fail_below": 0.0, "metric": "genre-probe logistic"},
            "--metric 'genre-probe logistic' is not measured: add probes to --parts",
        ),
        ({"parts": ("figures",)}, "--parts figures needs a folder: give --output"),
        ({"sample": 1}, "sample is 1: must be at least 2"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        EvaluateConfig(**options)  # type: ignore[arg-type]


def test_a_baseline_that_is_not_compared_is_named(library: Library) -> None:
    fill(library, artists=3)
    with pytest.raises(InvalidOption, match="--baseline best: the runs to compare are fair, good, poor"):
        evaluate(library, EvaluateConfig(baseline="best"))
    assert len({task.name for task in TASKS}) == len(TASKS)
