"""(stand-in until the branch `shards` is merged)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CANDIDATE = np.dtype(
    [("shard", "i4"), ("label", "i4"), ("cosine", "f4"), ("hubness", "f4"), ("artist", "i8"), ("album", "i8"),
     ("recording", "i8"), ("title", "i8"), ("duration", "f4")]
)  # fmt: skip


@dataclass(frozen=True)
class Filters:
    """Which tracks may be answered."""
