"""The members of a run that joins others: which tracks all of them have embedded, and in which files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from songray.errors import MissingInput
from songray.key_index import KeyIndex
from songray.keys import REVISION_BITS, Interval, Keys
from songray.library import Library, Vectors, matrix
from songray.table import Table

if TYPE_CHECKING:
    import ray


def embeddings_of(library: Library, run: str) -> Table:
    """The table of a run's embeddings. Raises MissingInput where it is empty."""
    table = library.table("embeddings", run)
    if not table.sample_keys(1).size:
        raise MissingInput(f"{table.name} has no vectors: run `songray embed --run {run}` first")
    return table


def read_vectors(table: Table, keys: Keys) -> Vectors:
    """The vectors of some of the tracks of a table of embeddings, by sorted keys: (tracks, dimension)."""
    return matrix(table.newest_rows(keys >> REVISION_BITS, ["embedding"])["embedding"])


@dataclass(frozen=True)
class Members:
    """Tables of embeddings, with their key indexes."""

    tables: Sequence[Table]
    indexes: Sequence[KeyIndex]

    @classmethod
    def of(cls, library: Library, runs: Iterable[str]) -> Members:
        """Raises MissingInput where a run has embedded no track."""
        tables = [embeddings_of(library, run) for run in runs]
        return cls(tables, [table.key_index() for table in tables])

    def common(self, interval: Interval) -> Keys:
        """The keys in an interval, sorted, of the tracks that all members have embedded."""
        return reduce(np.intersect1d, self._keys(interval))

    def missing(self) -> dict[str, int]:
        """The number of tracks of other members that are missing in each table, by its name."""
        counts = dict.fromkeys((table.name for table in self.tables), 0)
        for interval in self._intervals:
            own = self._keys(interval)
            every = reduce(np.union1d, own).size
            for name, keys in zip(counts, own, strict=True):
                counts[name] += every - keys.size
        return counts

    def store_places(self, keys: Keys) -> Places:
        """Where the vectors of some of the common tracks lie, in Ray's object store. Memory: a range of the
        key indexes."""
        import ray

        kind = np.dtype([("key", "i8"), ("file", "i4", (len(self.tables),))])
        bounds, ranges = [], []
        for interval in self._intervals:
            low, high = np.searchsorted(keys, interval)
            places = np.empty(high - low, kind)
            places["key"] = keys[low:high]
            for number, (table, index) in enumerate(zip(self.tables, self.indexes, strict=True)):
                embedded, file = table.usable_between(index, interval)
                places["file"][:, number] = file[np.searchsorted(embedded, places["key"])]
            bounds.append(interval[0])
            ranges.append(ray.put(places))
        files = ray.put([index.paths for index in self.indexes])
        return Places(self.tables, files, np.array(bounds), ranges)

    @property
    def _intervals(self) -> list[Interval]:
        return max((index.intervals for index in self.indexes), key=len)

    def _keys(self, interval: Interval) -> list[Keys]:
        pairs = zip(self.tables, self.indexes, strict=True)
        return [table.usable_between(index, interval)[0] for table, index in pairs]


@dataclass(frozen=True)
class Places:
    """In which file of each member each of some tracks lies."""

    tables: Sequence[Table]
    files: ray.ObjectRef  # of the paths of each table's files
    bounds: Keys  # the first key of each range
    ranges: list[ray.ObjectRef]  # of arrays, sorted by key: `key`, and `file` of each table

    def read(self, keys: Keys, columns: Sequence[str]) -> list[pa.Table]:
        """Columns of each member's rows of some of the tracks, by sorted keys."""
        import ray

        file: list[NDArray[np.int32]] = []
        parts = np.split(keys, np.searchsorted(keys, self.bounds[1:]))
        for part, stored in zip(parts, self.ranges, strict=True):
            if part.size:
                places = ray.get(stored)
                file.append(places["file"][np.searchsorted(places["key"], part)])
        of_tables = np.concatenate(file).T
        paths: list[list[str]] = ray.get(self.files)
        return [
            table.rows_of(keys, own, names, columns)
            for table, own, names in zip(self.tables, of_tables, paths, strict=True)
        ]
