"""The recommender on constructed spaces."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from test_index import indexed, opened  # noqa: F401

from songray import recommender
from songray.library import Library

pytestmark = pytest.mark.usefixtures("cluster")


def test_neighbours_are_ranked_by_cosine_and_leave_the_seed_out(indexed: Library) -> None:  # noqa: F811
    index = opened(indexed)
    found = asyncio.run(recommender.similar(index, "a:7", 10))
    embeddings = indexed.table("embeddings", "mfcc-x").read()
    vectors = np.array(embeddings["embedding"].to_pylist())
    cosines = vectors @ vectors[7]
    expected = [f"a:{number}" for number in np.argsort(-cosines) if number != 7][:10]
    assert [one.track["track_id"] for one in found] == expected
    for one in found:
        assert one.similarity == pytest.approx(
            (1 + cosines[int(one.track["track_id"][2:])]) / 2, abs=1e-4
        )  # seeds are stored in half precision


def test_k_beyond_the_index_gives_all_others(indexed: Library) -> None:  # noqa: F811
    assert len(asyncio.run(recommender.similar(opened(indexed), "a:0", 500))) == 299


def test_an_unknown_track_is_told_in_a_sentence(indexed: Library) -> None:  # noqa: F811
    with pytest.raises(recommender.UnknownTrack, match="track a:999 is not in the index"):
        asyncio.run(recommender.similar(opened(indexed), "a:999", 5))


def test_examples_tell_whether_the_style_is_the_same(indexed: Library) -> None:  # noqa: F811
    text = asyncio.run(recommender.examples(opened(indexed), seeds=2, k=3))
    assert text.count("sounds like") == 2
    assert "style" not in text  # these tracks have none
