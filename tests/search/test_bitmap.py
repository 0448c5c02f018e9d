from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.search.bitmap import pack, unpack


@given(st.sets(st.integers(0, 5000)))
def test_labels_are_stored_as_text(labels: set[int]) -> None:
    assert unpack(pack(np.array(sorted(labels), np.int64))).tolist() == sorted(labels)


def test_few_bytes_are_stored_where_few_labels_are() -> None:
    labels = np.flatnonzero(np.random.default_rng(0).random(250_000) < 0.05)
    assert len(pack(labels)) < 17_000  # the entropy is 8,950 bytes; as a list in JSON it is 80,000


@pytest.mark.parametrize("text", ["!", "AAAA"])
def test_a_damaged_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"damaged|base64|Only"):
        unpack(text)
