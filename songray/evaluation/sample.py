"""The tracks on which runs are compared, and what the catalogue says of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute

from songray.evaluation.intervals import Groups
from songray.keys import REVISION_BITS, Keys
from songray.library import Library, Row
from songray.table import Table

COLUMNS = ["track_id", "title", "artist_ids", "artist_names", "album_id", "album", "recording", "genres",
           "release_date", "duration_seconds", "tempo_bpm", "key", "mode"]  # fmt: skip
TEMPO_BPM = 20  # of a class of tempos


@dataclass(frozen=True)
class Sample:
    """A random sample of tracks in random order: the first ones of it are a random sample, too."""

    tracks: Keys  # without revision, sorted: they are hashes
    rows: list[Row]  # of COLUMNS; and `related`, the pairs of related artists with one of its own

    @classmethod
    def read(cls, library: Library, runs: Sequence[Table], most: int) -> Sample:
        """At most so many tracks that all runs have embedded."""
        tracks = library.table("tracks")
        common = common_tracks([tracks, *runs], most)
        rows = tracks.newest_rows(common, COLUMNS).to_pylist()
        pairs = related_pairs(library, {artist for row in rows for artist in row["artist_ids"] or []})
        related = (sorted({pair for own in row["artist_ids"] or [] for pair in pairs[own]}) for row in rows)
        return cls(common, [{**row, "related": own} for row, own in zip(rows, related, strict=True)])

    @cached_property
    def artists(self) -> Groups:
        """The first artist of each track as a number; a track without one is an artist of its own."""
        names = [(row["artist_ids"] or [f"\0{position}"])[0] for position, row in enumerate(self.rows)]
        groups: Groups = np.unique(names, return_inverse=True)[1]
        return groups

    @cached_property
    def genres(self) -> list[list[str]]:
        return [row["genres"] or [] for row in self.rows]

    @cached_property
    def decades(self) -> list[list[str]]:
        """The decade of each track's release, such as 1980s, where it is known."""
        dates = [row["release_date"] or "" for row in self.rows]
        return [[f"{date[:3]}0s"] if date[:4].isdigit() else [] for date in dates]

    @cached_property
    def labels(self) -> dict[str, list[list[str]]]:
        """What probes predict of each track, by its name; none where the catalogue does not state it."""
        return {
            "genre": self.genres,
            "decade": self.decades,
            "tempo": [_tempo_class(row["tempo_bpm"]) for row in self.rows],
            "key": [[row["key"]] if row["key"] else [] for row in self.rows],
            "mode": [[row["mode"]] if row["mode"] else [] for row in self.rows],
        }


def _tempo_class(bpm: float | None) -> list[str]:
    """Such as "120 to 140 BPM"."""
    if bpm is None:
        return []
    start = int(bpm) // TEMPO_BPM * TEMPO_BPM
    return [f"{start} to {start + TEMPO_BPM} BPM"]


def related_pairs(library: Library, artists: set[str]) -> dict[str, list[str]]:
    """The pairs of related artists among some artists: for each artist, the names of its pairs."""
    table, ids = library.table("related_artists"), pa.array(sorted(artists), pa.string())
    is_among = [pa.compute.field(name).isin(ids) for name in ("artist_id", "related_id")]
    pairs: dict[str, list[str]] = defaultdict(list)
    for row in table.read(["artist_id", "related_id"], is_among[0] & is_among[1]).to_pylist():
        name = " ".join(sorted((row["artist_id"], row["related_id"])))
        for artist in (row["artist_id"], row["related_id"]):
            pairs[artist].append(name)
    return pairs


def common_tracks(tables: Sequence[Table], most: int) -> Keys:
    """The lowest numbers of tracks that all tables have, sorted. They are hashes: a random sample."""
    indexes = [table.key_index() for table in tables]
    finest = max(indexes, key=lambda index: len(index.intervals))
    common = np.empty(0, np.int64)
    for interval in finest.intervals:
        newest = (
            table.newest_between(index, interval, ["track_key"]).rows["track_key"].to_numpy() >> REVISION_BITS
            for table, index in zip(tables, indexes, strict=True)
        )
        common = np.append(common, reduce(np.intersect1d, newest))
        if common.size >= most:
            break
    return common[:most]
