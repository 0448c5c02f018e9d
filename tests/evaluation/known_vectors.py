"""Vectors and labels whose scores are known."""

from __future__ import annotations

import numpy as np

from songray.library import Row, Vectors


def unit(vectors: np.ndarray) -> Vectors:
    scaled: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def rows(count: int, artists: int, genres: int) -> list[Row]:
    """Tracks in turn of each artist, whose tracks have all one genre."""
    return [
        {
            "track_id": f"t:{number}",
            "title": f"Song {number}",
            "artist_ids": [f"a:{number % artists}"],
            "artist_names": [f"Artist {number % artists}"],
            "album_id": f"b:{number % (2 * artists)}",
            "album": f"Album {number % (2 * artists)}",
            "recording": None,
            "genres": [f"g{number % artists % genres}"],
            "release_date": f"{1970 + number % artists % 40}",
        }
        for number in range(count)
    ]


def around(classes: np.ndarray, noise: float, dimension: int = 16, seed: int = 0) -> Vectors:
    """Vectors around one random centre for each class."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(int(classes.max()) + 1, dimension))
    return unit(centres[classes] + noise * random.normal(size=(len(classes), dimension)))
