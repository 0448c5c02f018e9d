"""The states of a crawl, in sorted arrays, are those of a dictionary."""

from __future__ import annotations

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from songray.catalogue import states
from songray.catalogue.states import CrawlStates, TrackState
from songray.keys import LAST_REVISION, NUMBERS, hash64

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
changes = st.lists(
    st.tuples(
        st.integers(0, 40),  # the track
        st.integers(0, NUMBERS - 1),
        st.integers(0, LAST_REVISION),
        st.integers(0, 40),
        INT64,
        st.integers(0, (1 << 32) - 1),
    ),
    max_size=120,
)


@given(changes, st.integers(1, 20))
def test_any_changes_are_looked_up_as_in_a_dictionary(
    given_changes: list[tuple[int, ...]], recent: int
) -> None:
    compact, expected = CrawlStates(), {}
    with mock.patch.multiple(states, RECENT=recent, PART=7):
        for track, number, revision, completeness, checksum, audio in given_changes:
            id_hash = hash64("id", f"t:{track}")
            state = TrackState(number, revision, id_hash, completeness, checksum, audio)
            compact.set(state)
            expected[f"t:{track}"] = state
    for track in range(41):
        assert compact.get(f"t:{track}") == expected.get(f"t:{track}")
    for state in expected.values():
        assert compact.has_number(state.number)
    assert not compact.has_number(-1)


def test_arrays_are_few_and_numbers_are_those_of_new_tracks() -> None:
    compact = CrawlStates()
    with mock.patch.object(states, "RECENT", 10):
        for track in range(1000):
            compact.set(TrackState(3 * track, 0, hash64("id", f"t:{track}"), 1, 2, 3, left=5))
    sizes = [len(level.id_hashes) for level in compact._levels]
    assert len(sizes) < 8 and sum(sizes) == 1000
    assert [number for number in range(3000) if compact.has_number(number)] == [*range(0, 3000, 3)]
    assert compact.get("t:7") == TrackState(21, 0, hash64("id", "t:7"), 1, 2, 3)
