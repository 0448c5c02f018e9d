"""Sets of labels as text: a bitmap, compressed by zlib, in base64."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def pack(labels: Labels) -> str:
    """The text of some labels, each from 0 on; "" of none."""
    if not labels.size:
        return ""
    bits = np.zeros(int(labels.max()) + 1, bool)
    bits[labels] = True
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def unpack(text: str) -> Labels:
    """The labels of a text, ascending. Raises ValueError where it is damaged."""
    if not text:
        return np.empty(0, np.int64)
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except zlib.error as error:
        raise ValueError(f"a bitmap is damaged: {error}") from error
    return np.flatnonzero(np.unpackbits(packed))
