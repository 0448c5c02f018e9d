"""Playlists of three tastes become factors in which each taste stands apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from songray.learning.factorize import FactorizeConfig, factorize, newest
from songray.library import Library, track_key

TASTES, TRACKS_EACH = 3, 12


def crawl(library: Library, playlists: int, number: int = 1, stray: bool = False) -> None:
    """Playlists of eight tracks of one taste each, half of each written by a second run."""
    random = np.random.default_rng(0)
    ids = [f"t:{one}" for one in range(TASTES * TRACKS_EACH)]
    tracks = library.table("tracks")
    described = [{"track_key": track_key(one, 0), "track_id": one, "crawl": number} for one in ids]
    tracks.append(pa.Table.from_pylist(described, tracks.schema()), f"{number}")
    rows = []
    for name in range(playlists):
        taste = name % TASTES * TRACKS_EACH
        chosen = random.permutation(TRACKS_EACH)[:8] + taste if not stray else range(0, 36, 5)
        rows += [
            {
                "playlist_id": f"p:{name}",
                "position": place,
                "crawl": number + place % 2,
                "version": str(number),
                "track_id": ids[one],
            }
            for place, one in enumerate(chosen)
        ]
    table = library.table("playlists")
    table.append(pa.Table.from_pylist(rows, table.schema()), f"{number}")


@pytest.mark.parametrize("method", ["als", "item2vec"])
@pytest.mark.usefixtures("cluster")
def test_tracks_that_listeners_put_together_lie_together(library: Library, method: str) -> None:
    crawl(library, 60, number=1, stray=True)  # superseded by the next crawl
    crawl(library, 60, number=3)
    made = factorize(library, FactorizeConfig(method, factors=6))
    assert (made.tracks, made.playlists, made.version) == (TASTES * TRACKS_EACH, 60, 1)
    rows = newest(library.table("factors", method))
    factors = np.stack(rows["factors"].to_pylist())
    tastes = np.array([int(one[2:]) // TRACKS_EACH for one in rows["track_id"].to_pylist()])
    unit = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = tastes[:, None] == tastes
    assert cosines[same].mean() > cosines[~same].mean() + 0.3
    np.fill_diagonal(cosines, -1)
    assert (tastes[cosines.argmax(1)] == tastes).all()


@pytest.mark.usefixtures("cluster")
def test_unchanged_playlists_are_left_and_changed_ones_are_a_new_version(library: Library) -> None:
    crawl(library, 30)
    config = FactorizeConfig(factors=6, min_playlists=1)
    first = factorize(library, config)
    assert not factorize(library, config).is_new
    crawl(library, 33, number=2)
    second = factorize(library, config)
    assert (first.version, second.version, second.is_new) == (1, 2, True)
    assert set(newest(library.table("factors", "als"))["version"].to_pylist()) == {2}


@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_factorised_is_told(library: Library) -> None:
    with pytest.raises(Exception, match=r"playlists is empty: run jobs/crawl\.py"):
        factorize(library, FactorizeConfig())
    crawl(library, 3)
    with pytest.raises(Exception, match=r"too few for 64 factors: lower --factors"):
        factorize(library, FactorizeConfig())
