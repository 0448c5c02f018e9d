"""Tempo, key and mode, as catalogues write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.catalogue.sources.tonality import PITCH_CLASSES, tempo, tonality


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Am", ("A", "minor")), ("A", ("A", "major")), ("F# minor", ("F#", "minor")), ("Bb", ("A#", "major")),
        ("c♯ Moll", ("C#", "minor")), ("Cb maj", ("B", "major")), ("8A", ("A", "minor")),
        ("8B", ("C", "major")), ("1A", ("G#", "minor")), ("12B", ("E", "major")), ("7", ("G", None)),
        ("o", (None, None)), ("", (None, None)), (None, (None, None)),
    ],
)  # fmt: skip
def test_keys_are_read_in_all_notations(written: str | None, expected: tuple[str | None, str | None]) -> None:
    assert tonality(written) == expected


@given(st.sampled_from(PITCH_CLASSES), st.sampled_from(["major", "minor"]))
def test_what_is_written_is_read_again(key: str, mode: str) -> None:
    assert tonality(f"{key} {mode}") == tonality(key, mode) == (key, mode)
    assert tonality(str(PITCH_CLASSES.index(key)), mode) == (key, mode)


@pytest.mark.parametrize("written", ["H", "CM", "13A", "12", "A minor?"])
def test_another_text_is_no_key(written: str) -> None:
    with pytest.raises(ValueError, match="is not like A, Am"):
        tonality(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("120", 120), (97.5, 97.5), ("0", None), ("nan", None), ("", None), (None, None)],
)
def test_tempos_that_are_none_are_unknown(written: str | float | None, expected: float | None) -> None:
    assert tempo(written) == expected
