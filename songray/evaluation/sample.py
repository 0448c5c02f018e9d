"""The tracks on which runs are compared, and what the catalogue says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from songray.evaluation.intervals import Groups
from songray.keys import REVISION_BITS, Keys
from songray.library import Library, Row
from songray.table import Table

COLUMNS = ["track_id", "title", "artist_ids", "artist_names", "album_id", "album", "recording", "genres",
           "release_date"]  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A random sample of tracks in random order: the first ones of it are a random sample, too."""

    tracks: Keys  # without revision, sorted: they are hashes
    rows: list[Row]  # of COLUMNS

    @classmethod
    def read(cls, library: Library, runs: Sequence[Table], most: int) -> Sample:
        """At most so many tracks that all runs have embedded."""
        tracks = library.table("tracks")
        common = common_tracks([tracks, *runs], most)
        return cls(common, tracks.newest_rows(common, COLUMNS).to_pylist())

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
