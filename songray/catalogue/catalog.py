"""Adds the contents of pages to the tables of a library."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute

from songray.catalogue.existing import STORED_STATUSES, ExistingTracks, record_checksum
from songray.catalogue.frontier import Frontier, page_without, references
from songray.catalogue.sources.base import CompleteListing, Page, Source
from songray.errors import Conflict
from songray.leases import Lease
from songray.library import Library, Row
from songray.table import Table

VANISHED = "vanished"  # fingerprint of a page that its source no longer has
SECONDS_BETWEEN_WRITES = 0.5  # a killed crawl repeats the requests of so long
ROWS_PER_FILE = 5000


class CatalogWriter:
    """Writes what the pages of one crawl contain. A page is written after its contents, so that a page that
    counts as read is complete in all tables.

    `counts` counts tracks by status, and pages as "read"; `problems` counts problems by kind, and `examples`
    has the first of each kind.
    """

    def __init__(
        self, library: Library, source: Source, crawl: int, frontier: Frontier, lease: Lease
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._library, self._lease = library, lease
        self._source, self._crawl, self._frontier = source, crawl, frontier
        self._tracks = ExistingTracks(library)
        self._removed = references(source.name, self._tracks.removed)
        artists = library.table("artists").read(["artist_id", "name", "genres"]).to_pylist()
        self._artists = {record_checksum(artist) for artist in artists}
        # In the order in which they are written
        names = ("tracks", "artists", "related_artists", "playlists", "pages", "crawls")
        self._appenders = {name: TableAppender(library.table(name)) for name in names}
        self._unfinished: defaultdict[str, UnfinishedPage] = defaultdict(UnfinishedPage)
        self._written_at = time.monotonic()

    def add(self, pieces: pa.Table) -> None:
        """Add pieces of pages, in the schema PIECES."""
        tracks = pa.compute.list_flatten(pieces["tracks"].combine_chunks())
        self._tracks.load(pa.compute.struct_field(tracks, "track_id").to_pylist())
        for number in range(pieces.num_rows):  # a block may have many pieces, of a thousand tracks each
            (piece,) = pieces.slice(number, 1).to_pylist()
            self._add_piece(piece)
            if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
                self.write()

    def _add_piece(self, piece: Row) -> None:
        removed = self._tracks.removed
        self._add_tracks(piece)
        self._add_artists(piece["artists"])
        self._append("related_artists", piece["related_artists"])
        version = {"version": piece["fingerprint"]}
        entries = (entry for entry in piece["playlist_entries"] if entry["track_id"] not in removed)
        self._append("playlists", (entry | version for entry in entries))
        self._add_page(piece)

    def write(self) -> None:
        """Write what was added. Raises Conflict where another process has taken over the crawl's lease."""
        self._lease.check()
        for appender in self._appenders.values():
            appender.write(self._crawl)
        self._written_at = time.monotonic()

    def record_vanished(self, pages: Set[str]) -> None:
        """Record pages that the source no longer has, and that the tracks whose audio they were are gone, but
        for those that this crawl has found elsewhere."""
        tracks = self._library.table("tracks")
        newest = tracks.newest(tracks.schema().names).rows
        named = newest.filter(pa.compute.is_in(newest["location"], pa.array(sorted(pages), pa.string())))
        gone = [row for row in named.to_pylist() if not self._tracks.is_described(row["track_id"])]
        # Without a checksum: a description is a change, and so brings it back.
        self._append("tracks", (row | {"is_gone": True, "checksum": 0} for row in gone))
        self._append("pages", ({"page": page, "fingerprint": VANISHED} for page in pages))
        self.counts["gone"] += len(gone)

    def record_end(self, options: str) -> None:
        """Record that the crawl has finished; `options` are the source's, as JSON."""
        self._append("crawls", [{"options": options}])
        self.write()

    def _append(self, table: str, rows: Iterable[Row]) -> None:
        self._appenders[table].rows.extend(row | {"source": self._source.name} for row in rows)

    def _add_tracks(self, piece: Row) -> None:
        """Add the tracks of a piece of a page; those that cannot be stored are added to its problems."""
        for track in piece["tracks"]:
            try:
                status, state = self._tracks.update(track, self._source)
            except Conflict as error:
                piece["problems"].append({"kind": "no_key", "detail": str(error)})
                continue
            self.counts[status] += 1
            self._unfinished[piece["page"]].track_ids.append(track["track_id"])
            if status == "removed" and track["location"] == piece["page"]:
                self._unfinished[piece["page"]].is_removed = True
            if state and status in STORED_STATUSES:
                location = {"location": None} if track["location"] in self._tracks.removed else {}
                self._append("tracks", state.rows(track | location))

    def _add_artists(self, artists: list[Row]) -> None:
        for artist in artists:
            if (checksum := record_checksum(artist)) not in self._artists:
                self._artists.add(checksum)
                self._append("artists", [artist])

    def _add_page(self, piece: Row) -> None:
        for problem in piece["problems"]:
            self.problems[problem["kind"]] += 1
            self.examples.setdefault(problem["kind"], problem["detail"])
        page = self._unfinished[piece["page"]]
        page.problems.extend(piece["problems"])
        names = ((link, page_without(link["name"], self._removed)) for link in piece["pages"])
        links = (Page(**link | {"name": name}) for link, name in names if name)
        page.links.extend(dataclasses.asdict(link) for link in self._frontier.follow(piece["page"], links))
        if piece["finished"]:
            self.counts["read"] += 1
            row = {"page": piece["page"], "fingerprint": piece["fingerprint"]}
            # A page that names a removed track is not stored, and so read by every crawl.
            if not page.is_removed and page_without(piece["page"], self._removed) == piece["page"]:
                row |= {"page_problems": page.problems, "links": page.links}
                is_listed = isinstance(self._source, CompleteListing)
                self._append("pages", [row | ({"track_ids": page.track_ids} if is_listed else {})])
            del self._unfinished[piece["page"]]


@dataclasses.dataclass
class UnfinishedPage:
    """What the pieces of a page have contained so far, beside rows of tables."""

    problems: list[Row] = dataclasses.field(default_factory=list)
    links: list[Row] = dataclasses.field(default_factory=list)
    track_ids: list[str] = dataclasses.field(default_factory=list)
    is_removed: bool = False  # it is the file of a track that was removed


class TableAppender:
    """Appends rows to a table in small files, which a large one replaces as soon as they can fill it."""

    def __init__(self, table: Table) -> None:
        self.rows: list[Row] = []  # to be written
        self._table = table
        self._small_files: list[str] = []
        self._small_rows = table.schema().empty_table()  # contents of the small files

    def write(self, crawl: int) -> None:
        if not self.rows:
            return
        rows = [{"crawl": crawl} | row for row in self.rows]
        new = self._last_of_each_key(pa.Table.from_pylist(rows, self._table.schema()))
        self.rows = []
        self._small_rows = pa.concat_tables([self._small_rows, new])
        is_full = self._small_rows.num_rows >= ROWS_PER_FILE
        name = f"{crawl:06d}-{time.time_ns()}"
        path = self._table.append(self._last_of_each_key(self._small_rows) if is_full else new, name)
        self._small_files.append(path)
        if is_full:  # a crawl that is killed before the deletion leaves equal rows twice
            self._table.delete(self._small_files[:-1])
            self._small_files, self._small_rows = [], self._small_rows.slice(0, 0)

    def _last_of_each_key(self, rows: pa.Table) -> pa.Table:
        """One row for each key, as every file has."""
        numbered = rows.append_column("number", pa.array(np.arange(rows.num_rows)))
        last = numbered.group_by(self._table.kind.key).aggregate([("number", "max")])["number_max"]
        return rows.take(last.sort())
