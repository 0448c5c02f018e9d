"""Runs that join others: their vectors, which tracks get one, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import tone
from hypothesis import given
from hypothesis import strategies as st
from small_models import fit as fit_model
from small_models import noise, small
from uploads import upload_encoder

from songray import key_index
from songray.audio.excerpt import Excerpt
from songray.audio.transform import TransformConfig, transform
from songray.errors import InvalidOption, MissingInput
from songray.keys import track_key
from songray.learning import encoder, fuse, runs
from songray.learning.embed import EmbedConfig, embed
from songray.learning.encoder import fit_encoder
from songray.learning.fuse import FusionConfig
from songray.learning.fusion import Fusion, JoinedTags, principal_directions
from songray.learning.members import Members, read_vectors
from songray.learning.models import labels
from songray.learning.models.build import build
from songray.learning.runs import Run
from songray.learning.scale import unit
from songray.learning.windows import jackknife_clips
from songray.library import Library, Vectors, tag_matrix
from songray.tables import TABLES

MEMBERS = {"first": ("mfcc", "default"), "second": ("musicnn-msd", "second")}  # run: model, set


def vectors_of(seed: int, *dimensions: int, tracks: int = 7) -> list[Vectors]:
    random = np.random.default_rng(seed)
    return [unit(random.normal(size=(tracks, dimension))) for dimension in dimensions]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 100)), min_size=2, max_size=4),
    st.integers(0, 99),
)
def test_the_cosine_of_joined_vectors_is_the_weighted_mean(
    members: list[tuple[int, float]], seed: int
) -> None:
    vectors = vectors_of(seed, *(dimension for dimension, _ in members))
    weights = np.array([weight for _, weight in members], np.float32)
    joined = Fusion(weights).join(vectors)
    expected = sum(w * (v @ v.T) for w, v in zip(weights / weights.sum(), vectors, strict=True))
    assert np.allclose(joined @ joined.T, expected, atol=1e-5)


@given(st.integers(1, 12), st.integers(0, 99))
def test_the_directions_are_those_of_a_singular_value_decomposition(dimension: int, seed: int) -> None:
    (joined,) = vectors_of(seed, 12, tracks=40)
    directions = principal_directions(joined, dimension)
    assert np.allclose(directions.T @ directions, np.eye(dimension), atol=1e-5)
    left, sizes, right = np.linalg.svd(joined, full_matrices=False)
    closest = (left[:, :dimension] * sizes[:dimension]) @ right[:dimension]
    assert np.allclose(joined @ directions @ directions.T, closest, atol=1e-4)


def test_directions_are_fitted_where_tracks_are_many(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, vectors in zip(("first", "second"), vectors_of(0, 6, 8, tracks=40), strict=True):
        add_embeddings(library, run, range(40), vectors)
    members = Members.of(library, ("first", "second"))
    config = FusionConfig(("first:1", "second:1"), dimension=8)
    fitted, sample = fuse.fit(members, config)
    assert fitted.directions is not None and fitted.directions.shape == (14, 8) and len(sample) == 40
    monkeypatch.setattr(fuse, "TRACKS_PER_NUMBER", 6)
    fitted, sample = fuse.fit(members, config)
    assert fitted.directions is None and not len(sample)


def test_a_tag_of_several_members_has_the_mean_of_their_probabilities() -> None:
    kind = TABLES["embeddings"].columns["tags"]
    first = tag_matrix(pa.chunked_array([pa.array([[0.5, 0.25], [0.5, 0.5]], kind)]), 2)
    second = tag_matrix(pa.chunked_array([pa.array([[1.0, 0.75], None], kind)]), 2)
    none = tag_matrix(pa.chunked_array([pa.nulls(2, kind)]), 0)
    joined = JoinedTags([("rock", "piano"), (), ("piano", "flute")])
    assert joined.labels == ("rock", "piano", "flute")
    tags = joined.join([first, none, second])
    assert tags is not None
    assert tags[0].tolist() == [0.5, 0.625, 0.75]
    assert tags[1, 0] == 0.5 and np.isnan(tags[1, 1:]).all()  # the second member does not know the track
    assert JoinedTags([(), ()]).join([none, none]) is None


def keys_of(numbers: Sequence[int]) -> list[int]:
    return [track_key(f"t:{number}", 0) for number in numbers]


def stored_vectors(library: Library, run: str, numbers: Sequence[int]) -> Vectors:
    """The vectors of tracks of a run, in their order."""
    keys = np.array(keys_of(numbers))
    vectors = read_vectors(library.table("embeddings", run), np.sort(keys))
    return vectors[np.argsort(np.argsort(keys))]


def add_embeddings(library: Library, run: str, numbers: Sequence[int], vectors: Vectors) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    ids = [f"t:{number}" for number in numbers]
    rows = pa.table({"track_key": pa.array(keys_of(numbers)), "track_id": ids, "embedding": column})
    library.table("embeddings", run).append(rows, f"{numbers[0]:03}")


def sound(folder: Path, number: int) -> bytes:
    path = folder / f"{number}.flac"
    return (path if path.exists() else tone(path, seconds=4.5, hertz=150 + 37 * number)).read_bytes()


def add_previews(library: Library, folder: Path, numbers: Sequence[int]) -> None:
    table = library.table("previews")
    rows = [
        {"track_key": key, "track_id": f"t:{number}", "audio": sound(folder, number)}
        for key, number in zip(keys_of(numbers), numbers, strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{numbers[0]:03}")


def save_members(library: Library) -> None:
    for name, (model_name, set_name) in MEMBERS.items():
        model = fit_model(small(model_name))
        fitted = fit_encoder(model, jackknife_clips(model, noise(model, 400, 500, 600)))
        options, tracks = asdict(small(model_name)), {"train": 3, "validation": 0}
        encoder.save(library, Run(name, model_name, options, {}, set_name, tracks, "", {}, {}, []), fitted)


def embed_member(library: Library, run: str) -> None:
    """Compute what the set and the embeddings of a member lack."""
    model, set_name = MEMBERS[run]
    spec = build(small(model)).spec
    transform(library, TransformConfig(set=set_name, specs=(spec,)))
    embed(library, EmbedConfig(run=run, actors=1))


@pytest.mark.usefixtures("cluster")
def test_tracks_that_all_members_embed_get_the_vector_of_an_upload(
    library: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The members take different spectrograms, which lie in different sets; key indexes have four ranges."""
    monkeypatch.setattr(fuse, "TRACKS_PER_NUMBER", 1)
    monkeypatch.setattr(key_index, "RANGE_ROWS", 3)
    save_members(library)
    add_previews(library, tmp_path, range(10))
    embed_member(library, "second")
    add_previews(library, tmp_path, range(10, 12))
    embed_member(library, "first")
    run = fuse.fuse(library, FusionConfig(("second:0.5", "first:1"), dimension=6))
    assert run.members == {"first": 1, "second": 0.5}
    assert fuse.fuse(library, FusionConfig(("first:1", "second:0.5"), dimension=6)) == run
    assert "joins first (1), second (0.5); reduced to 6 numbers, fitted on 10 tracks" in str(run)
    summary = embed(library, EmbedConfig(run=run.name))
    assert (summary.rows, summary.existing, summary.done) == (10, 0, 10)
    lacking = "2 tracks of other members are not in embeddings/second: run `songray embed --run second`"
    assert lacking in str(summary)
    embed_member(library, "second")
    before = library.table("embeddings", run.name).files()
    summary = embed(library, EmbedConfig(run=run.name, rows_per_file=1))
    assert (summary.rows, summary.existing, summary.done) == (12, 10, 2)
    assert set(before) < set(library.table("embeddings", run.name).files())
    stored = stored_vectors(library, run.name, range(12))
    assert stored.shape == (12, 6) and np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-5)
    assert runs.tags_of(library, run) == labels.MSD
    of_run, of_member = (
        library.table("embeddings", name).read(["track_key", "tags"]).sort_by("track_key")["tags"]
        for name in (run.name, "second")
    )
    assert of_run.null_count == 0 and of_run.to_pylist() == of_member.to_pylist()
    with upload_encoder(library) as embed_uploads:
        for numbers in ([3], [11, 0, 3, 7, 5]):
            uploaded = embed_uploads(run.name, [sound(tmp_path, number) for number in numbers])
            assert np.abs(uploaded - stored[numbers]).max() < 1e-5


def test_vectors_are_found_by_track_in_any_file_and_the_newest_of_a_repeated_one(library: Library) -> None:
    (vectors,) = vectors_of(0, 4, tracks=9)
    for first in (0, 3, 6):
        add_embeddings(library, "r", range(first, first + 3), vectors[first : first + 3])
    add_embeddings(library, "r", [7, 1], vectors[[0, 2]])  # written once more
    assert np.array_equal(stored_vectors(library, "r", [8, 1, 4, 7]), vectors[[8, 2, 4, 0]])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("first:1",), "--members first:1: name at least two runs"),
        (("first:1", "first:2"), "--members first:2: the run first is named twice"),
        (("first:1", "second"), "--members second: write RUN:WEIGHT"),
        (("first:1", "second:0"), "--members second:0: write RUN:WEIGHT, with a weight above 0"),
        (("first:1", "second:nan"), "--members second:nan: write RUN:WEIGHT"),
        (("first:1", "third:1"), "--members third: no such run exists; the finished runs are first, second"),
        ((), "--members is empty"),
    ],
)
def test_members_that_cannot_be_joined_are_named(
    members: tuple[str, ...], message: str, library: Library
) -> None:
    save_members(library)
    with pytest.raises(InvalidOption, match=message):
        fuse.fuse(library, FusionConfig(members))


def test_members_without_common_tracks_are_named(library: Library) -> None:
    save_members(library)
    config = FusionConfig(("first:1", "second:1"))
    with pytest.raises(
        MissingInput, match="embeddings/first has no vectors: run `songray embed --run first`"
    ):
        fuse.fuse(library, config)
    first, second = vectors_of(0, 4, 5, tracks=3)
    add_embeddings(library, "first", range(3), first)
    add_embeddings(library, "second", range(3, 6), second)
    with pytest.raises(MissingInput, match="no track is in all of embeddings/first, embeddings/second"):
        fuse.fuse(library, config)


def test_a_member_that_is_no_more_is_named(library: Library) -> None:
    save_members(library)
    for name, vectors in zip(MEMBERS, vectors_of(0, 4, 5, tracks=3), strict=True):
        add_embeddings(library, name, range(3), vectors)
    run = fuse.fuse(library, FusionConfig(("first:1", "second:1")))
    library.filesystem.delete_dir(library.path("runs", "second"))
    with pytest.raises(MissingInput, match=f"run {run.name} joins the run second, which no longer exists"):
        embed(library, EmbedConfig(run=run.name))


def test_members_of_different_excerpts_are_refused(library: Library) -> None:
    save_members(library)
    for set_name, at in (("default", "middle"), ("second", "start")):
        library.table("spectrograms", set_name).claim({"excerpt": asdict(Excerpt(30.0, at))})
    with pytest.raises(InvalidOption, match=r"different excerpts of a track .*'middle'.*'start'.*--set"):
        fuse.fuse(library, FusionConfig(("first:1", "second:1")))
