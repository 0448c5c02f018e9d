"""Vectors in float32: scaled to length 1, and those that are stored as float16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from songray.library import Vectors


def unit_vectors(halves: NDArray[np.float16]) -> Vectors:
    """Stored vectors, (tracks, dimension), as float32, scaled to length 1 after rounding, as in the graph."""
    return normalise(to_float32(halves))


def normalise(vectors: Vectors) -> Vectors:
    """Vectors, (vectors, dimension), scaled to length 1; those of length 0 stay."""
    lengths = np.sqrt(np.einsum("td,td->t", vectors, vectors))[:, None]
    units: Vectors = vectors / np.maximum(lengths, 1e-12)
    return units


def to_float32(halves: NDArray[np.float16]) -> Vectors:
    """Convert finite float16 numbers by integer operations: a few times as fast as NumPy's conversion."""
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13  # the fraction to its place in float32
    bits &= ~0x70000000  # the copies of the sign that the shift left in the exponent
    vectors: Vectors = bits.view(np.float32)
    vectors *= np.float32(2.0**112)  # the bias of float32's exponent is 127, that of float16's is 15
    return vectors
