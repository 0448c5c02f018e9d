"""The newest state of each track, which decides what a crawl stores of it."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from songray.catalogue.sources.base import Source
from songray.errors import Conflict
from songray.keys import (
    COMPLETENESS_MASK,
    MAX_PROBES,
    NUMBERS,
    REVISION_BITS,
    Keys,
    hash64,
    numbered_key,
    track_number,
)
from songray.library import Library, Row

TrackStatus = Literal["new", "changed", "unchanged", "completed", "duplicate", "removed"]
STORED_STATUSES = ("new", "changed", "completed")  # tracks of which a crawl stores a row


class TrackState(NamedTuple):
    """What a crawl compares of a track."""

    number: int  # 55 bits: the hash of its id, or the next number that was free
    revision: int
    id_hash: int
    completeness: int  # number of fields with a value
    checksum: int  # of all fields
    audio_checksum: int  # of the audio version

    def columns(self, track_id: str) -> Row:
        """The columns of `tracks` that hold it."""
        key = numbered_key(self.number, self.revision, track_id)
        return {"track_key": key} | {name: getattr(self, name) for name in self._fields if name != "number"}


def described_state(track: Row, number: int, revision: int = 0) -> TrackState:
    return TrackState(
        number=number,
        revision=revision,
        id_hash=hash64("id", track["track_id"]),
        completeness=sum(value not in (None, "", []) for value in track.values()),
        checksum=record_checksum(track) & ~int(COMPLETENESS_MASK),
        audio_checksum=hash64(track["audio_version"]) & 0xFFFFFFFF,
    )


def record_checksum(record: Row) -> int:
    return hash64(json.dumps(record, sort_keys=True))


class ExistingTracks:
    """The newest state of each track in the library, as arrays, and of each track in this crawl.

    Memory: 29 bytes a track of the library, some 500 a track of this crawl.
    """

    def __init__(self, library: Library, source: Source) -> None:
        self._source = source
        newest = library.table("tracks").newest(
            ["track_key", "id_hash", "completeness", "checksum", "audio_checksum"]
        )
        columns = {name: newest.rows[name].to_numpy() for name in newest.rows.column_names}
        self._keys: Keys = columns["track_key"]  # sorted
        self._id_hashes: Keys = columns["id_hash"]
        self._checksums: Keys = columns["checksum"]
        self._audio_checksums: NDArray[np.uint32] = columns["audio_checksum"].astype(np.uint32)
        self._completeness: NDArray[np.int8] = columns["completeness"].astype(np.int8)
        self._in_crawl: dict[str, TrackState] = {}  # by track id
        self._new_numbers: set[int] = set()
        self._removed = set(library.table("removed").read(["track_id"])["track_id"].to_pylist())

    def update(self, track: Row) -> tuple[TrackStatus, TrackState | None]:
        """Compare a description of a track with its newest state, which it may replace.

        Of repeated descriptions in one crawl the most complete counts. A description by another source than
        the track's own replaces none in the library; nor does a less complete one, unless the source's pages
        contain all fields.
        """
        track_id = track["track_id"]
        if track_id in self._removed:
            return "removed", None
        if before := self._in_crawl.get(track_id):
            status, state = _repeated(before, track)
        elif stored := self._stored(track_id):
            status, state = self._compare(stored, track)
        else:
            status, state = "new", described_state(track, self._free_number(track_id))
            self._new_numbers.add(state.number)
        self._in_crawl[track_id] = state
        return status, state

    def _compare(self, stored: TrackState, track: Row) -> tuple[TrackStatus, TrackState]:
        """The status of a track of the library that this crawl describes for the first time."""
        state = described_state(track, stored.number, stored.revision)
        is_less_complete = state.completeness < stored.completeness
        is_foreign = not track["track_id"].startswith(f"{self._source.name}:")
        if is_foreign or (is_less_complete and not self._source.is_complete):
            return "unchanged", stored
        if (state.completeness, state.checksum) == (stored.completeness, stored.checksum):
            return "unchanged", stored
        has_new_audio = state.audio_checksum != stored.audio_checksum
        return "changed", state._replace(revision=stored.revision + has_new_audio)

    def _stored(self, track_id: str) -> TrackState | None:
        """The state in the library, looked up by the hash of the id among the numbers that it may have."""
        id_hash = hash64("id", track_id)
        for row in self._rows(track_number(track_id)):
            if self._id_hashes[row] == id_hash:
                number, revision = divmod(int(self._keys[row]), 1 << REVISION_BITS)
                columns = (self._completeness, self._checksums, self._audio_checksums)
                return TrackState(number, revision, id_hash, *(int(column[row]) for column in columns))
        return None

    def _free_number(self, track_id: str) -> int:
        """The first number from the hash of the id on that no other id has. Raises Conflict."""
        first = track_number(track_id)
        stored = {int(self._keys[row]) >> REVISION_BITS for row in self._rows(first)}
        for probe in range(MAX_PROBES):
            number = (first + probe) % NUMBERS
            if number not in stored and number not in self._new_numbers:
                return number
        raise Conflict(f"the {MAX_PROBES} numbers that {track_id} may have are taken: give it another id")

    def _rows(self, first: int) -> list[int]:
        """The rows of the library whose number is one of MAX_PROBES from `first` on, modulo NUMBERS."""
        ranges = (first, min(first + MAX_PROBES, NUMBERS)), (0, first + MAX_PROBES - NUMBERS)
        rows: list[int] = []
        for start, end in ranges:
            if start < end:
                low = np.searchsorted(self._keys, start << REVISION_BITS)
                high = np.searchsorted(self._keys, (end << REVISION_BITS) - 1, side="right")
                rows.extend(range(low, high))
        return rows


def _repeated(before: TrackState, track: Row) -> tuple[TrackStatus, TrackState]:
    """The status of a track that this crawl has described before: "completed" where a row is to be stored."""
    state = described_state(track, before.number, before.revision)
    if state.completeness > before.completeness:
        return "completed", state
    return "duplicate", before
