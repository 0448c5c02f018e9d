"""The states of existing tracks, which a crawl looks up among those of a large library or of a small one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from songray import key_index
from songray.catalogue import existing
from songray.catalogue.existing import ExistingTracks, TrackStatus
from songray.catalogue.sources.base import Track
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.catalogue.states import TrackState
from songray.keys import NUMBERS
from songray.library import Library, Row

SOURCE = ManifestSource()
REVISIONS = 3  # of a number
# Ids with numbers that are equal, adjacent, and at both ends of the range of numbers.
NUMBERED = {"a": 5, "b": 5, "c": 6, "d": NUMBERS - 1, "e": NUMBERS - 1, "f": 0, "g": 900, "h": 5}


def number_of(track_id: str) -> int:
    return NUMBERED[track_id.removeprefix("manifest:")]


def described(name: str, title: str, audio: str = "1") -> Row:
    track = Track(track_id=f"manifest:{name}", title=title, location="x", artist_ids=[], artist_names=[])
    return dataclasses.asdict(dataclasses.replace(track, audio_version=audio))


def crawl(library: Library, tracks: list[Row], crawl: int) -> list[tuple[TrackStatus, TrackState | None]]:
    """The states after a crawl that describes the tracks one after the other, and that stores them."""
    found = ExistingTracks(library)
    results, rows = [], []
    for track in tracks:
        found.load([track["track_id"]])
        status, state = found.update(track, SOURCE)
        results.append((status, state))
        if state and status in existing.STORED_STATUSES:
            rows += [{"crawl": crawl} | row for row in state.rows(track)]
    table = library.table("tracks")
    if rows:
        table.append(pa.Table.from_pylist(rows, table.schema()), f"{crawl:06}")
    return results


def test_unknown_fields_of_later_versions_change_no_checksum() -> None:
    track = described("a", "title")
    earlier = {name: value for name, value in track.items() if name not in existing.LATER_FIELDS}
    assert existing.described_state(track, 1) == existing.described_state(earlier, 1)
    assert existing.described_state(track | {"tempo_bpm": 97.0}, 1).checksum != (
        existing.described_state(track, 1).checksum
    )


def test_a_large_library_answers_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ids share numbers, tracks change, and one uses its revisions up."""
    monkeypatch.setattr(existing, "track_number", number_of)
    monkeypatch.setattr(existing, "LAST_REVISION", REVISIONS)
    monkeypatch.setattr(key_index, "_map", lambda function, given: [function(*each) for each in given])
    libraries = [Library.open(str(tmp_path / name)) for name in ("small", "large")]
    rounds = [
        [described(name, "first") for name in "abcd"],
        [described(name, "second") for name in "abefgc"],
        [described("a", "third", audio="2"), described("h", "new"), described("g", "second")],
        *([described("b", "again", audio=f"{n}")] for n in range(REVISIONS + 2)),
        [described(name, "last") for name in "abcdefgh"],
    ]
    for number, tracks in enumerate(rounds, 1):
        small, large = libraries
        expected = crawl(small, tracks, number)
        with monkeypatch.context() as patch:
            patch.setattr(existing, "HELD_TRACKS", -1)
            patch.setattr(key_index, "RANGE_ROWS", 4)
            assert crawl(large, tracks, number) == expected
    statuses = [status for status, _ in expected]
    assert set(statuses) == {"changed"} and len({state.number for _, state in expected if state}) == 8
