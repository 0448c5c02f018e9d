"""The newest state of each track, which decides what a crawl stores of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from songray.catalogue.sources.base import Source
from songray.catalogue.states import CrawlStates, TrackState
from songray.errors import Conflict
from songray.keys import (
    COMPLETENESS_MASK,
    LAST_REVISION,
    LEFT,
    MAX_PROBES,
    NUMBERS,
    REVISION_BITS,
    Interval,
    Keys,
    hash64,
    track_number,
)
from songray.library import Library, Row

TrackStatus = Literal["new", "changed", "unchanged", "completed", "duplicate", "removed", "gone"]
HELD_TRACKS = 8_000_000  # of a library, whose states are held together: 29 bytes each
COLUMNS = ["track_key", "id_hash", "completeness", "checksum", "audio_checksum"]
# Fields that earlier versions do not store: while they are unknown, the checksum is as it was then.
LATER_FIELDS = ("tempo_bpm", "key", "mode", "license")
STORED_STATUSES = ("new", "changed", "completed")  # tracks of which a crawl stores a row


def described_state(track: Row, number: int, revision: int = 0) -> TrackState:
    counted = {name: value for name, value in track.items() if value is not None or name not in LATER_FIELDS}
    return TrackState(
        number=number,
        revision=revision,
        id_hash=hash64("id", track["track_id"]),
        completeness=sum(value not in (None, "", []) for value in track.values()),
        checksum=record_checksum(counted) & ~int(COMPLETENESS_MASK),
        audio_checksum=hash64(track["audio_version"]) & 0xFFFFFFFF,
    )


def record_checksum(record: Row) -> int:
    return hash64(json.dumps(record, sort_keys=True))


class ExistingTracks:
    """The newest states of the tracks of a library that were loaded, and of those in this crawl.

    Memory: a range of the key index, and the tracks of this crawl: see CrawlStates.
    """

    def __init__(self, library: Library) -> None:
        self._table = library.table("tracks")
        self._index = self._table.key_index()
        self._in_crawl = CrawlStates()
        # Numbers that `revise` has given, or that a track has left.
        self._taken_numbers: set[int] = set()
        parts = []
        for interval in self._index.intervals:
            rows = self._index.between(interval, ["crawl"])
            left = rows.filter(pyarrow.compute.field("crawl") == LEFT)["track_key"].to_numpy()
            self._taken_numbers |= set((left >> REVISION_BITS).tolist())
            if self._is_small:
                parts.append(self._rows_between(interval))
        self._hold(parts)
        self.removed: Set[str] = set(library.table("removed").read(["track_id"])["track_id"].to_pylist())

    @property
    def _is_small(self) -> bool:
        return self._index.rows <= HELD_TRACKS

    def load(self, track_ids: Iterable[str]) -> None:
        """Load the states of some tracks, which `update` and `revise` need. A small library is held whole."""
        if self._is_small:
            return
        first = np.unique(np.array([track_number(track_id) for track_id in track_ids], np.int64))
        parts = []
        for interval in self._index.intervals:
            rows = self._rows_between(interval)
            numbers = rows["track_key"].to_numpy() >> REVISION_BITS
            distance = (numbers[:, None] - _before(first, numbers)) % NUMBERS
            parts.append(rows.filter(pa.array((distance < MAX_PROBES).any(axis=1))))
        self._hold(parts)

    def _rows_between(self, interval: Interval) -> pa.Table:
        return self._table.newest_between(self._index, interval, COLUMNS).rows

    def _hold(self, parts: list[pa.Table]) -> None:
        rows = pa.concat_tables(parts) if parts else self._table.schema().empty_table().select(COLUMNS)
        columns = {name: rows[name].to_numpy() for name in COLUMNS}
        self._keys: Keys = columns["track_key"]  # sorted
        self._id_hashes: Keys = columns["id_hash"]
        self._checksums: Keys = columns["checksum"]
        self._audio_checksums: NDArray[np.uint32] = columns["audio_checksum"].astype(np.uint32)
        self._completeness: NDArray[np.int8] = columns["completeness"].astype(np.int8)

    def update(self, track: Row, source: Source) -> tuple[TrackStatus, TrackState | None]:
        """Compare a source's description of a track with its newest state, which it may replace.

        Of repeated descriptions in one crawl the most complete counts. A description by another source than
        the track's own replaces none in the library; nor does a less complete one, unless the source's pages
        contain all fields. Raises Conflict where no key is left for the track.
        """
        track_id = track["track_id"]
        if track_id in self.removed:
            return "removed", None
        if before := self._in_crawl.get(track_id):
            status, state = _repeated(before, track)
        elif stored := self._stored(track_id):
            status, state = self._compare(stored, track, source)
        else:
            status, state = "new", described_state(track, self._free_number(track_id))
        self._in_crawl.set(state)
        return status, state

    def is_described(self, track_id: str) -> bool:
        """Whether this crawl has described a track."""
        return self._in_crawl.get(track_id) is not None

    def revise(self, track_id: str) -> TrackState | None:
        """The state of a track of the library with a new revision. Raises Conflict where no key is left."""
        if (stored := self._stored(track_id)) is None:
            return None
        state = self._next_revision(stored, track_id)
        if state.left is not None:
            self._taken_numbers.add(state.number)
        return state

    def _compare(self, stored: TrackState, track: Row, source: Source) -> tuple[TrackStatus, TrackState]:
        """The status of a track of the library that this crawl describes for the first time."""
        state = described_state(track, stored.number, stored.revision)
        is_less_complete = state.completeness < stored.completeness
        is_foreign = not track["track_id"].startswith(f"{source.name}:")
        if is_foreign or (is_less_complete and not source.is_complete):
            return "unchanged", stored
        if (state.completeness, state.checksum) == (stored.completeness, stored.checksum):
            return "unchanged", stored
        if state.audio_checksum != stored.audio_checksum:
            state = self._next_revision(state, track["track_id"])
        return "changed", state

    def _next_revision(self, state: TrackState, track_id: str) -> TrackState:
        """The state with the next revision, under another number after the last one. Raises Conflict."""
        if state.revision < LAST_REVISION:
            return state._replace(revision=state.revision + 1)
        return state._replace(revision=0, number=self._free_number(track_id), left=state.number)

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
        """The first number from the hash of the id on that no id has or had. Raises Conflict."""
        first = track_number(track_id)
        stored = {int(self._keys[row]) >> REVISION_BITS for row in self._rows(first)}
        for probe in range(MAX_PROBES):
            number = (first + probe) % NUMBERS
            is_taken = number in stored or number in self._taken_numbers or self._in_crawl.has_number(number)
            if not is_taken:
                return number
        raise Conflict(
            f"the {MAX_PROBES} numbers that {track_id} may have are taken, by other ids or by "
            f"{LAST_REVISION + 1} revisions each: give it another id"
        )

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


def _before(first: Keys, numbers: Keys) -> Keys:
    """For each number the nearest of some sorted ones that is not above it, and the last of all, from which
    probes go on at 0: (numbers, 2)."""
    if not first.size:
        return np.full((numbers.size, 2), -1)
    position = np.maximum(np.searchsorted(first, numbers, side="right") - 1, 0)
    return np.stack([first[position], np.full(numbers.size, first[-1])], axis=1)


def _repeated(before: TrackState, track: Row) -> tuple[TrackStatus, TrackState]:
    """The status of a track that this crawl has described before: "completed" where a row is to be stored."""
    state = described_state(track, before.number, before.revision)
    if state.completeness > before.completeness:
        return "completed", state
    return "duplicate", before
