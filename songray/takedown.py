"""What the tables of a library hold of removed tracks, and rows without it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute

from songray.catalogue.frontier import page_without, references
from songray.keys import REVISION_BITS, KeySet, track_number
from songray.library import Library, Row

COLUMNS = {  # by which the rows to change are recognised
    "tracks": ("track_id", "location"),
    "previews": ("track_id", "audio_id"),
    "pages": ("source", "page", "page_problems", "links", "track_ids"),
}
DERIVED = ("spectrograms", "embeddings", "maps")  # tables of what is computed from audio
EMPTIED = ("audio", "location", "audio_id", "size_bytes", "sha256", "status")  # in previews
AUDIO_REMOVED = "its audio was that of a track that has been removed"


@dataclass(frozen=True)
class Takedown:
    """The tracks that are removed, and what follows from them."""

    ids: Sequence[str]
    locations: Collection[str]  # of their audio: paths and URLs
    tracks: KeySet  # their keys
    derived: KeySet  # and those of other tracks with their audio, for what is computed from previews

    def keys(self, table: str) -> KeySet:
        """The keys that a table and its checkpoints must not have."""
        return self.derived if table.startswith(DERIVED) else self.tracks

    @cached_property
    def id_set(self) -> frozenset[str]:
        return frozenset(self.ids)

    @cached_property
    def mention(self) -> re.Pattern[str]:
        """An id, a location, or the page of a track, in a sentence."""
        pages = (f"track/{track_id.partition(':')[2]}" for track_id in self.ids)
        names = sorted({*self.ids, *self.locations, *pages}, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")


def find_takedown(library: Library, ids: Sequence[str]) -> Takedown:
    """What a library knows of some ids: their numbers, and audio that was fetched under other ids."""
    tracks = library.table("tracks").read(["track_id", "track_key", "location"])
    keys = tracks["track_key"].to_numpy()
    is_named = pa.compute.is_in(tracks["track_id"], pa.array(ids, pa.string())).to_numpy()
    # An id without a row, such as in an index that was not updated since, has the number of its hash.
    hashes = np.array([track_number(track_id) for track_id in ids], np.int64)
    free = np.setdiff1d(hashes, keys[~is_named] >> REVISION_BITS)
    numbers = np.union1d(keys[is_named] >> REVISION_BITS, free)
    has_their_audio = pa.compute.field("audio_id").isin(pa.array(ids, pa.string()))
    previews = library.table("previews").read(["track_key"], has_their_audio)
    locations = tracks.filter(pa.array(is_named))["location"].drop_null().unique().to_pylist()
    derived = KeySet(numbers, np.unique(previews["track_key"].to_numpy()))
    return Takedown(ids, frozenset(locations), KeySet(numbers), derived)


def columns_read(table: str, names: Sequence[str]) -> list[str]:
    """Those of the columns of a file by which `without` recognises the rows to change."""
    kind = table.partition("/")[0]
    return [name for name in COLUMNS.get(kind, ("track_id", "track_key")) if name in names]


def without(table: str, rows: pa.Table, takedown: Takedown) -> tuple[pa.Table, int]:
    """Rows of a table, or some of their columns, without the tracks. Returns also how many rows were dropped
    or changed."""
    kind = table.partition("/")[0]
    if kind == "pages":
        return _pages_without(rows, takedown)
    is_dropped = _is_in(rows["track_id"], takedown.ids)
    if kind in DERIVED:
        is_dropped |= np.isin(rows["track_key"].to_numpy(), takedown.derived.keys)
    kept = rows.filter(pa.array(~is_dropped))
    changed = 0
    if kind == "previews" and "audio_id" in kept.column_names:
        is_changed = _is_in(kept["audio_id"], takedown.ids)
        kept, changed = _emptied(kept, is_changed), int(is_changed.sum())
    if kind == "tracks":  # of another track, which names one of these as its audio
        is_changed = _is_in(kept["location"], takedown.ids)
        kept, changed = _replaced(kept, "location", is_changed, None), int(is_changed.sum())
    return kept, int(is_dropped.sum()) + changed


def _is_in(column: pa.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    is_in: np.ndarray = pa.compute.is_in(column, pa.array(values, pa.string())).to_numpy()
    return is_in


def _emptied(previews: pa.Table, rows: np.ndarray) -> pa.Table:
    """The previews, some of them as permanent failures, so that their audio is not fetched again."""
    values = dict.fromkeys(EMPTIED) | {"error": "removed", "detail": AUDIO_REMOVED}
    for name, value in values.items():
        if name in previews.column_names:
            previews = _replaced(previews, name, rows, value)
    return previews


def _replaced(table: pa.Table, name: str, rows: np.ndarray, value: str | None) -> pa.Table:
    position, field = table.schema.get_field_index(name), table.schema.field(name)
    column = pa.compute.if_else(pa.array(rows), pa.scalar(value, field.type), table[name])
    return table.set_column(position, field, column)


def _pages_without(rows: pa.Table, takedown: Takedown) -> tuple[pa.Table, int]:
    """Pages without those that are the tracks' files or addresses, and links and problems that name them."""
    before = rows.to_pylist()
    after = [_page_without(row, takedown) for row in before]
    changed = sum(page != row for page, row in zip(after, before, strict=True))
    return pa.Table.from_pylist([page for page in after if page], rows.schema), changed


def _page_without(row: Row, takedown: Takedown) -> Row | None:
    removed = references(row["source"], takedown.ids)
    name = page_without(row["page"], removed)
    holds_one = not takedown.id_set.isdisjoint(row.get("track_ids") or [])
    if name is None or name in takedown.locations or holds_one:
        return None
    page = row | {"page": name}
    if row.get("links"):
        names = [page_without(link["name"], removed) for link in row["links"]]
        page["links"] = [
            link | {"name": name}
            for link, name in zip(row["links"], names, strict=True)
            if name is not None and name not in takedown.locations
        ]
    if row.get("page_problems"):
        problems = row["page_problems"]
        page["page_problems"] = [one for one in problems if not takedown.mention.search(one["detail"] or "")]
    return page
