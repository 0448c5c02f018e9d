"""Tables as the stages before training leave them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from songray.audio.spectrograms import SPECS
from songray.keys import track_key
from songray.library import Library


def store_spectrograms(
    library: Library, count: int, first: int = 0, specs: Sequence[str] = ("mel128",)
) -> None:
    """Tracks by ten artists, with patterns that can be learned."""
    random = np.random.default_rng(first)
    ids = [f"t:{number}" for number in range(first, first + count)]
    keys = [track_key(track_id, 0) for track_id in ids]
    shapes = random.integers(20, 120, (count, 1, 128)) + 100 * (np.arange(600)[:, None] % 32 < 4)
    patterns = np.minimum(shapes, 255).astype(np.uint8)
    cells = {spec: [pattern[:, : SPECS[spec].bins].tobytes() for pattern in patterns] for spec in specs}
    tracks = library.table("tracks")
    rows = [
        {"track_key": key, "track_id": track_id, "crawl": 1, "artist_ids": [f"a:{n % 10}"], "genres": []}
        for n, (key, track_id) in enumerate(zip(keys, ids, strict=True))
    ]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), f"{first}")
    spectrograms = library.table("spectrograms", "default")
    rows = [
        {"track_key": key, "track_id": track_id} | {spec: cells[spec][number] for spec in specs}
        for number, (key, track_id) in enumerate(zip(keys, ids, strict=True))
    ]
    columns = ["track_key", "track_id", *specs, "error"]  # those of a set with these specs
    spectrograms.append(pa.Table.from_pylist(rows, spectrograms.schema()).select(columns), f"{first}")
