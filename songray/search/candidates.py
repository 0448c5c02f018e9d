"""What a search in a shard finds: candidates for a query, and points of the map; sorted and merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CANDIDATE = np.dtype(
    [
        ("shard", "i4"),
        ("label", "i4"),
        ("cosine", "f4"),
        ("artist", "i8"),  # hash of the first artist; hashes are 0 where the value is unknown
        ("album", "i8"),
        ("recording", "i8"),  # or the ISRC
        ("title", "i8"),  # without the name of an edition
        ("duration", "f4"),  # seconds, or nan
    ]
)
POINT = np.dtype([("shard", "i4"), ("label", "i4"), ("x", "f4"), ("y", "f4"), ("sample_rank", "i8")])

Candidates = NDArray[np.void]  # of CANDIDATE
Points = NDArray[np.void]  # of POINT
Place = tuple[int, int]  # the shard's number in its version, and the label
Box = tuple[float, float, float, float]  # left, bottom, right, top


def by_cosine(parts: Sequence[Candidates], k: int) -> Candidates:
    """The first k of lists of candidates, by descending cosine, then place."""
    every = np.concatenate([np.empty(0, CANDIDATE), *parts])
    return every[np.lexsort((every["label"], every["shard"], -every["cosine"]))[:k]]


def merge(parts: Sequence[list[Candidates]], queries: int, k: int) -> list[Candidates]:
    """Merge what shards, which may be none, return for the same queries: for each query, the k nearest."""
    return [by_cosine([part[query] for part in parts], k) for query in range(queries)]


def merge_points(parts: Sequence[Points], limit: int) -> Points:
    """Merge the points of shards: by ascending sample rank."""
    every = np.concatenate([np.empty(0, POINT), *parts])
    return every[np.argsort(every["sample_rank"], kind="stable")[:limit]]
