"""Tables as the stages before training leave them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from songray.keys import track_key
from songray.library import Library


def store_spectrograms(library: Library, count: int, first: int = 0) -> None:
    """Tracks by ten artists, with patterns that can be learned."""
    random = np.random.default_rng(first)
    ids = [f"t:{number}" for number in range(first, first + count)]
    keys = [track_key(track_id, 0) for track_id in ids]
    shapes = random.integers(20, 120, (count, 1, 128)) + 100 * (np.arange(600)[:, None] % 32 < 4)
    cells = [np.minimum(shape, 255).astype(np.uint8).tobytes() for shape in shapes]
    tracks = library.table("tracks")
    rows = [
        {"track_key": key, "track_id": track_id, "crawl": 1, "artist_ids": [f"a:{n % 10}"], "genres": []}
        for n, (key, track_id) in enumerate(zip(keys, ids, strict=True))
    ]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), f"{first}")
    spectrograms = library.table("spectrograms", "default")
    rows = [
        {"track_key": key, "track_id": track_id, "mel128": cell}
        for key, track_id, cell in zip(keys, ids, cells, strict=True)
    ]
    columns = ["track_key", "track_id", "mel128", "error"]  # those of a set with one spec
    spectrograms.append(pa.Table.from_pylist(rows, spectrograms.schema()).select(columns), f"{first}")
