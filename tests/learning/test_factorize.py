"""Factors of tracks from playlists of three tastes, which must separate."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import InvalidOption, MissingInput, songray_error
from songray.keys import hash64, track_key
from songray.learning.factorize import (
    FactorizeConfig,
    checksum,
    factorize,
    newest_version,
    numbered,
    read_entries,
)
from songray.library import Library

TASTES, TRACKS_EACH = 3, 12


def crawl(library: Library, playlists: int, number: int = 1, mixed: bool = False) -> None:
    """Playlists of eight tracks of one taste each, or of mixed ones; a second crawl writes half of each."""
    random = np.random.default_rng(0)
    ids = [f"t:{track}" for track in range(TASTES * TRACKS_EACH)]
    tracks = library.table("tracks")
    described = [
        {"track_key": track_key(track_id, 0), "track_id": track_id, "crawl": number} for track_id in ids
    ]
    tracks.append(pa.Table.from_pylist(described, tracks.schema()), f"{number}")
    rows = []
    for name in range(playlists):
        taste = name % TASTES * TRACKS_EACH
        entries = range(0, 36, 5) if mixed else random.permutation(TRACKS_EACH)[:8] + taste
        rows += [
            {
                "playlist_id": f"p:{name}",
                "position": position,
                "crawl": number + position % 2,
                "version": str(number),
                "track_id": ids[track],
            }
            for position, track in enumerate(entries)
        ]
    table = library.table("playlists")
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{number}")


@pytest.mark.parametrize("method", ["als", "item2vec"])
@pytest.mark.usefixtures("cluster")
def test_tracks_that_share_playlists_have_similar_factors(library: Library, method: str) -> None:
    crawl(library, 60, number=1, mixed=True)  # superseded by the next crawl
    crawl(library, 60, number=3)
    result = factorize(library, FactorizeConfig(method, factors=6))
    assert (result.tracks, result.playlists, result.version) == (TASTES * TRACKS_EACH, 60, 1)
    rows = newest_version(library.table("factors", method))
    factors = np.stack(rows["factors"].to_pylist())
    tastes = np.array([int(track_id[2:]) // TRACKS_EACH for track_id in rows["track_id"].to_pylist()])
    unit = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = tastes[:, None] == tastes
    assert cosines[same].mean() > cosines[~same].mean() + 0.3
    np.fill_diagonal(cosines, -1)
    assert (tastes[cosines.argmax(1)] == tastes).all()


def refuse() -> None:
    raise AssertionError("Ray was started")


@pytest.mark.usefixtures("cluster")
def test_changed_playlists_are_a_new_version_and_unchanged_ones_need_no_ray(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl(library, 30)
    config = FactorizeConfig(factors=6, min_playlists=1)
    first = factorize(library, config)
    with monkeypatch.context() as patch:
        patch.setattr("songray.learning.factorize.connect", refuse)
        assert not factorize(library, config).is_new
    monkeypatch.setattr("songray.learning.factorize.DRIVER_ENTRIES", 0)  # the task finds the same
    assert not factorize(library, config).is_new
    crawl(library, 33, number=2)
    second = factorize(library, config)
    assert (first.version, second.version, second.is_new) == (1, 2, True)
    assert set(newest_version(library.table("factors", "als"))["version"].to_pylist()) == {2}


def test_a_sample_has_whole_playlists(library: Library) -> None:
    crawl(library, 60)
    crawl(library, 60, number=2)  # the same entries as another version
    playlists = library.table("playlists")
    entries = read_entries(playlists, FactorizeConfig())
    assert entries.num_rows == 60 * 8
    sampled = read_entries(playlists, FactorizeConfig(max_entries=480))
    names = set(sampled["playlist_id"].to_pylist())
    assert sampled.to_pylist() == [row for row in entries.to_pylist() if row["playlist_id"] in names]
    assert 100 < sampled.num_rows < 400
    assert read_entries(playlists, FactorizeConfig(max_entries=480, seed=1)) != sampled
    assert read_entries(playlists, FactorizeConfig(max_entries=1)).num_rows in (0, 8)


@pytest.mark.usefixtures("cluster")
def test_playlists_that_cannot_be_factorised_are_reported(library: Library) -> None:
    with pytest.raises(MissingInput, match="playlists is empty: run `songray crawl`"):
        factorize(library, FactorizeConfig())
    crawl(library, 3)
    with pytest.raises(InvalidOption, match=r"too few for 64 factors: lower --factors") as raised:
        factorize(library, FactorizeConfig())
    assert isinstance(songray_error(raised.value), InvalidOption)


@given(
    st.lists(st.tuples(st.text("ab", min_size=1), st.text("äb0", min_size=1)), max_size=9), st.integers(1, 4)
)
def test_the_checksum_is_a_hash_of_all_entries(pairs: list[tuple[str, str]], size: int) -> None:
    columns = ([pair[column] for pair in pairs] for column in (0, 1))
    schema = pa.schema({"playlist_id": pa.string(), "track_id": pa.string()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("songray.learning.factorize.CHECKSUM_ENTRIES", size)
        found = checksum(pa.table([*columns], schema=schema))
    assert found == hash64(*(f"{playlist} {track}" for playlist, track in pairs))


@given(st.lists(st.text(max_size=3)))
def test_names_are_numbered_in_their_order(names: list[str]) -> None:
    distinct, numbers = numbered(pa.chunked_array([names], pa.string()))
    assert distinct.tolist() == sorted(set(names))
    assert distinct[numbers].tolist() == names
