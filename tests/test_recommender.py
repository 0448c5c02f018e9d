"""Index and recommender on constructed spaces, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from songray import recommender, runs
from songray.index import Index, IndexConfig, build, newest_manifest
from songray.library import Library, track_key
from songray.models import MODELS
from songray.runs import Encoder, Run

VECTORS = np.eye(8, dtype=np.float32)[:, :8]


def fill(library: Library, vectors: np.ndarray, first: int = 0) -> None:
    """Tracks `a:<n>` with given vectors, as the stages before would leave them."""
    ids = [f"a:{number}" for number in range(first, first + len(vectors))]
    keys = [track_key(one, 0) for one in ids]
    table = library.table("tracks")
    rows = [
        {
            "track_key": key,
            "track_id": one,
            "crawl": 1,
            "source": "a",
            "title": f"Björk {one[2:]}",
            "genres": [],
        }
        | {"artist_names": ["The Knife"], "artist_ids": ["x"], "location": "/private/place.mp3"}
        for key, one in zip(keys, ids, strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{first}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
    embedded = {"track_key": pa.array(keys, pa.int64()), "track_id": ids, "embedding": column}
    library.table("embeddings", "mfcc-x").append(pa.table(embedded), f"{first}")


@pytest.fixture
def indexed(library: Library) -> Library:
    model = MODELS["mfcc"](coefficients=4).build()
    run = Run(
        "mfcc-x", "mfcc", {"coefficients": 4}, {}, "default", {"train": 1, "validation": 1}, "", {}, {}, []
    )
    library.filesystem.create_dir(library.path("runs", "mfcc-x"), recursive=True)
    runs.save(library, run, Encoder(model, np.zeros(8, np.float32), np.eye(8, dtype=np.float32)))
    random = np.random.default_rng(0).normal(size=(300, 8))
    fill(library, random / np.linalg.norm(random, axis=1, keepdims=True))
    return library


def opened(library: Library) -> Index:
    manifest = build(library, IndexConfig()).manifest
    return Index(library, manifest)


def test_neighbours_are_ranked_by_cosine_and_leave_the_seed_out(indexed: Library) -> None:
    index = opened(indexed)
    found = recommender.similar(index, "a:7", 10)
    embeddings = indexed.table("embeddings", "mfcc-x").read()
    vectors = np.array(embeddings["embedding"].to_pylist())
    cosines = vectors @ vectors[7]
    expected = [f"a:{number}" for number in np.argsort(-cosines) if number != 7][:10]
    assert [one.track["track_id"] for one in found] == expected
    for one in found:
        assert one.similarity == pytest.approx((1 + cosines[int(one.track["track_id"][2:])]) / 2, abs=1e-5)


def test_k_beyond_the_index_gives_all_others(indexed: Library) -> None:
    assert len(recommender.similar(opened(indexed), "a:0", 500)) == 299


def test_an_unknown_track_is_told_in_a_sentence(indexed: Library) -> None:
    with pytest.raises(recommender.UnknownTrack, match="track a:999 is not in the index"):
        recommender.similar(opened(indexed), "a:999", 5)


@pytest.mark.parametrize("text", ["bjork 7", "BJÖRK 7", "knife bj 7", '7"* OR', "7 kni"])
def test_search_ignores_accents_case_and_signs(indexed: Library, text: str) -> None:
    index = opened(indexed)
    labels = index.search(text.replace(" OR", ""), 100)
    assert "a:7" in [index.track(label)["track_id"] for label in labels]


def test_search_finds_nothing_for_nonsense_and_all_for_nothing(indexed: Library) -> None:
    index = opened(indexed)
    assert index.search("zzz", 5) == []
    assert len(index.search("", 5)) == 5
    assert index.search("'); DROP TABLE tracks; --", 5) == []


def test_a_version_is_written_only_when_something_has_changed(indexed: Library) -> None:
    first, again = build(indexed, IndexConfig()), build(indexed, IndexConfig())
    assert (first.new, again.new, again.manifest) == (True, False, first.manifest)
    fill(indexed, VECTORS, first=300)
    grown = build(indexed, IndexConfig())
    assert (grown.new, grown.manifest.version, grown.manifest.tracks) == (True, "000002", 308)
    assert len(Index(indexed, first.manifest)) == 300  # the older version still answers


def test_a_build_that_was_cut_off_is_no_index(indexed: Library) -> None:
    manifest = build(indexed, IndexConfig()).manifest
    folder = Path(indexed.path("indexes", "mfcc-x", manifest.version))
    (folder / "manifest.json").unlink()
    assert newest_manifest(indexed, "mfcc-x") is None
    assert build(indexed, IndexConfig()).new


def test_a_damaged_file_is_not_served(indexed: Library) -> None:
    manifest = build(indexed, IndexConfig()).manifest
    path = Path(indexed.path("indexes", "mfcc-x", manifest.version, "vectors.hnsw"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"vectors\.hnsw is damaged .*jobs/index\.py"):
        Index(indexed, manifest)


def test_examples_tell_whether_the_style_is_the_same(indexed: Library) -> None:
    text = recommender.examples(opened(indexed), seeds=2, k=3)
    assert text.count("sounds like") == 2
    assert "style" not in text  # these tracks have none
