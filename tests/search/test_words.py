"""Words about music → tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songray.errors import QueryError
from songray.learning.models.labels import MSD, MTT
from songray.search.words import MEANINGS, parse_question, parse_tags

LABELS = list(dict.fromkeys([*MSD, *MTT]))


def signs(text: str, labels: list[str] = LABELS) -> dict[str, int]:
    return {label: 1 if weight > 0 else -1 for label, weight in parse_question(text, labels).items()}


def test_all_tags_that_words_stand_for_exist() -> None:
    assert {tag.removeprefix("-") for tags in MEANINGS.values() for tag in tags} <= set(LABELS)


@pytest.mark.parametrize(
    ("text", "wanted", "excluded"),
    [
        ("piano", {"piano"}, set()),
        ("Two PIANOS!", {"piano"}, set()),
        ("calm piano without voice", {"piano", "mellow", "no vocals", "instrumental"}, {"vocals", "loud"}),
        ("no vocals", {"no vocals", "no voice"}, {"vocals", "singing"}),
        ("not slow", {"fast"}, {"slow", "mellow"}),
        ("rock but no drums or guitar", {"rock"}, {"drums", "guitar"}),
        ("no drums, guitar", {"guitar"}, {"drums"}),
        ("female singer from the eighties", {"female voice", "female vocalists", "80s"}, set()),
        ("hip hop", {"hip-hop"}, set()),
        ("R&B", {"rnb"}, set()),
        ("heavy métal", {"heavy metal", "metal"}, set()),
        ("hard rock", {"hard rock"}, set()),
        ("easy listening", {"easy listening"}, set()),
    ],
)
def test_words_ask_for_tags_and_exclude_some(text: str, wanted: set[str], excluded: set[str]) -> None:
    found = signs(text)
    assert wanted <= {label for label, sign in found.items() if sign > 0}
    assert excluded <= {label for label, sign in found.items() if sign < 0}


def test_each_known_word_weighs_one() -> None:
    weights = parse_question("calm piano", LABELS)
    assert weights["piano"] == 1
    assert sum(abs(weight) for label, weight in weights.items() if label != "piano") == pytest.approx(1)
    assert parse_question("voice", ["vocals", "rock"]) == {"vocals": 1}  # of a run with few tags


@given(st.text(max_size=80))
def test_any_text_has_weights_of_labels_or_is_refused(text: str) -> None:
    try:
        weights = parse_question(text, LABELS)
    except QueryError as error:
        assert "no word of" in str(error)
    else:
        assert weights and set(weights) <= set(LABELS) and all(weights.values())


def test_words_without_a_tag_are_refused_with_the_tags() -> None:
    with pytest.raises(QueryError, match="no word of 'the xyzzy' is known: use piano, rock, or words"):
        parse_question("the xyzzy", ["rock", "piano"])
    with pytest.raises(QueryError, match="no tags: its run gives none"):
        parse_question("piano", [])


def test_tags_of_a_filter_are_labels_in_any_case_and_number() -> None:
    assert parse_tags(["Piano,no vocal", "80S", "guitars"], LABELS) == ("piano", "no vocal", "80s", "guitar")
    assert parse_tags([], LABELS) == ()
    with pytest.raises(QueryError, match="'organ' is no tag of this index: it has piano, rock"):
        parse_tags(["rock, organ"], ["rock", "piano"])
