"""Reads a source; writes tracks, artists, playlists, the pages that it read, and the crawls that ended."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import ray.data

from songray.catalogue.frontier import Frontier
from songray.catalogue.sources.base import Artist, Page, PlaylistEntry, Source, Track
from songray.library import REVISION_BITS, TABLES, Keys, Library, Table, hash64, last_of_equal, track_key
from songray.stages import report_progress

PAGES_AT_ONCE = 100  # asked for together by one worker, whose next ones wait for the slowest
SECONDS_BETWEEN_WRITES = 0.5  # what a killed crawl asks for again
ROWS_PER_FILE = 5000
VERDICTS = ("new", "changed", "unchanged", "completed", "duplicate", "removed")
FULLNESS = 31  # bits of a checksum that tell how many fields have a value


@dataclass(frozen=True)
class CrawlConfig:
    max_tracks: int | None = None
    """Stop once so many tracks came that the library did not know; the next crawl goes on from there."""
    max_requests: int | None = None
    """Stop after so many pages; the next crawl goes on from there."""
    max_depth: int = 2
    """How many links to follow away from what was named: from an artist to related ones, and on."""
    refresh: bool = False
    """Read again also what cannot tell whether it has changed: searches, artists, albums."""
    max_failed_share: float = 0.5
    """Exit with an error when more than this share of the pages could not be had."""

    def __post_init__(self) -> None:
        for name in ("max_tracks", "max_requests"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.max_depth < 0:
            raise ValueError(f"max_depth is {self.max_depth}: must not be negative")


@dataclass
class CrawlSummary:
    """What a crawl did: pages by what became of them, tracks by VERDICTS, problems by class."""

    source: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # the first problem of each class
    stopped_by: str = ""  # the limit that ended the crawl
    seconds: float = 0.0

    def __str__(self) -> str:
        count = self.counts
        pages = f"{count['read']} pages read, {count['before']} read before"
        if count["again"]:
            pages += f", {count['again']} to try again"
        tracks = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict]) or "none"
        text = f"crawl: {self.source}: {pages}; tracks: {tracks} ({self.seconds:.1f} s)"
        lines = [f"{number} × {self.examples[name]}" for name, number in self.problems.most_common()]
        if self.stopped_by:
            lines.append(f"stopped by {self.stopped_by}: the next crawl goes on from there")
        return "\n  ".join([text, *lines])

    def check(self, max_failed_share: float) -> None:
        """Raise RuntimeError where more of the pages could not be had than the crawl may bear."""
        again, asked = self.counts["again"], self.counts["again"] + self.counts["read"]
        if asked and again / asked > max_failed_share:
            raise RuntimeError(
                f"{again} of {asked} pages of {self.source} could not be had, more than --max-failed-share "
                f"{max_failed_share:g} allows:\n{self}\nrun it again to go on from there"
            )


def crawl(library: Library, source: Source, config: CrawlConfig) -> CrawlSummary:
    """Read the pages that are new or changed, on all nodes, and write what they hold.

    A page counts as read once all that it holds is written: a crawl that was killed, or that a limit has
    stopped, goes on from there. Raises ValueError on options that cannot work, RuntimeError where too many
    pages could not be had.
    """
    started = time.monotonic()
    catalog = Catalog(library, source, config)
    catalog.frontier.meet(source.pages())
    with report_progress(catalog.progress):
        while pages := catalog.unread():
            rows = [dataclasses.asdict(page) for page in pages]
            items = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / PAGES_AT_ONCE))
            pieces = items.map_batches(read_batch, fn_args=(source,), batch_size=None, batch_format="pyarrow")
            for batch in pieces.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                catalog.add(batch)
                if catalog.has_enough_tracks():
                    break
    catalog.close()
    catalog.summary.seconds = time.monotonic() - started
    catalog.summary.check(config.max_failed_share)
    return catalog.summary


def read_batch(pages: pa.Table, source: Source) -> Iterator[pa.Table]:
    """The pieces of some pages, in the schema PIECES."""
    for page, contents in source.read([Page(**row) for row in pages.to_pylist()]):
        problems = [problem._asdict() for problem in contents.problems]
        row = {"page": page.name, "fingerprint": page.fingerprint} | dataclasses.asdict(contents)
        row["problems"] = problems
        yield pa.Table.from_pylist([row], PIECES)


def _fields(record: type[Any], table: str, **more: pa.DataType) -> pa.DataType:
    types = {**TABLES[table].columns, **more}
    return pa.list_(pa.struct({column.name: types[column.name] for column in dataclasses.fields(record)}))


PIECES = pa.schema(
    {
        "page": pa.string(),
        "fingerprint": pa.string(),
        "tracks": _fields(Track, "tracks", audio_version=pa.string()),
        "artists": _fields(Artist, "artists"),
        "playlist_entries": _fields(PlaylistEntry, "playlists"),
        "problems": pa.list_(pa.struct({"kind": pa.string(), "detail": pa.string()})),
        "pages": TABLES["pages"].columns["links"],
        "finished": pa.bool_(),
    }
)


class Catalog:
    """What the library knows of one source, and what it is told now.

    Memory: 24 bytes a track that was known, some 100 a track that is new in this crawl, and the frontier.
    """

    def __init__(self, library: Library, source: Source, config: CrawlConfig) -> None:
        self.source, self.config = source, config
        self.summary = CrawlSummary(source.name)
        pages = library.table("pages").read()
        self.crawl = (pa.compute.max(pages["crawl"]).as_py() or 0) + 1
        mine = pages.filter(pa.compute.equal(pages["source"], source.name)).sort_by("crawl")
        crawls = library.table("crawls").read(["crawl"], pa.compute.field("source") == source.name)
        finished = pa.compute.max(crawls["crawl"]).as_py() or 0
        self.frontier = Frontier(mine, finished, config.max_depth, config.refresh)
        artists = library.table("artists").read(["artist_id", "name", "genres"]).to_pylist()
        self._artists = {_checksum(artist) for artist in artists}
        self._known = _Known(library, source)
        self._parts = {
            name: _Part(library.table(name)) for name in ("tracks", "artists", "playlists", "pages", "crawls")
        }
        self._unfinished: defaultdict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self._asked = 0
        self._started = self._wrote_at = time.monotonic()

    def unread(self) -> list[Page]:
        """The pages to read next; none at the end of the crawl."""
        left = (self.config.max_requests or self._asked + 1) - self._asked
        if self.has_enough_tracks() or not left or not (pages := self.frontier.unread()):
            return []
        if self.config.max_requests:
            pages = pages[:left]
        self._asked += len(pages)
        return pages

    def has_enough_tracks(self) -> bool:
        return self.summary.counts["new"] >= (self.config.max_tracks or float("inf"))

    def add(self, pieces: pa.Table) -> None:
        """Take pieces of pages, in the schema PIECES; what has come is written every half second."""
        for piece in pieces.to_pylist():
            self._add_tracks(piece["tracks"])
            self._add_artists(piece["artists"])
            entries = (entry | {"version": piece["fingerprint"]} for entry in piece["playlist_entries"])
            self._parts["playlists"].rows.extend(entries)
            self._add_page(piece)
        if time.monotonic() - self._wrote_at > SECONDS_BETWEEN_WRITES:
            self.write()

    def _add_tracks(self, tracks: list[dict[str, Any]]) -> None:
        for track in tracks:
            checksums = {"audio_checksum": _audio_checksum(track), "checksum": _fullness_and_checksum(track)}
            verdict, revision = self._known.compare(track["track_id"], **checksums)
            self.summary.counts[verdict] += 1
            if verdict in ("new", "changed", "completed"):
                key = track_key(track["track_id"], revision)
                self._parts["tracks"].rows.append(
                    track | checksums | {"track_key": key, "revision": revision}
                )

    def _add_artists(self, artists: list[dict[str, Any]]) -> None:
        for artist in artists:
            if (checksum := _checksum(artist)) not in self._artists:
                self._artists.add(checksum)
                self._parts["artists"].rows.append(artist)

    def _add_page(self, piece: dict[str, Any]) -> None:
        for problem in piece["problems"]:
            self.summary.problems[problem["kind"]] += 1
            self.summary.examples.setdefault(problem["kind"], f"{problem['kind']}: {problem['detail']}")
        whole = self._unfinished[piece["page"]]
        whole["problems"].extend(piece["problems"])
        whole["links"].extend(self.frontier.follow(piece["page"], (Page(**link) for link in piece["pages"])))
        if piece["finished"]:
            self.summary.counts["read"] += 1
            row = {
                "page": piece["page"],
                "fingerprint": piece["fingerprint"],
                "page_problems": whole["problems"],
            }
            links = [dataclasses.asdict(link) for link in whole["links"]]
            self._parts["pages"].rows.append(row | {"links": links})
            del self._unfinished[piece["page"]]

    def write(self) -> None:
        """Write what has come: pages last, so that a page that counts as read is in the tables."""
        for part in self._parts.values():
            part.write(self.crawl, self.source.name)
        self._wrote_at = time.monotonic()

    def close(self) -> None:
        """Write what is left, and that the crawl has ended, where nothing is left to be tried again."""
        counts = self.summary.counts
        counts["before"] = self.frontier.skipped
        if self.has_enough_tracks():
            self.summary.stopped_by = f"--max-tracks {self.config.max_tracks}"
        elif self.config.max_requests == self._asked:
            self.summary.stopped_by = f"--max-requests {self.config.max_requests}"
        if not self.summary.stopped_by:
            counts["again"] = self._asked - counts["read"]
        if not counts["again"]:
            options = json.dumps(dataclasses.asdict(self.source), default=str)  # type: ignore[call-overload]
            self._parts["crawls"].rows.append({"options": options})
        self.write()

    def progress(self) -> str:
        counts, seconds = self.summary.counts, time.monotonic() - self._started
        found = sum(counts[verdict] for verdict in VERDICTS)
        return (
            f"crawl: {counts['read']} of {self._asked} pages read, depth {self.frontier.depth}, "
            f"{counts['read'] / seconds:.1f}/s; {found} tracks, {counts['new']} of them new"
        )


class _Part:
    """The rows that a crawl adds to one table: written soon in small files, which give way to a large one."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.rows: list[dict[str, Any]] = []  # to be written
        self._small: list[str] = []  # files
        self._kept = table.schema().empty_table()  # what they hold

    def write(self, crawl: int, source: str) -> None:
        if not self.rows:
            return
        common = {"crawl": crawl, "source": source}
        new = self._last_of_each(
            pa.Table.from_pylist([row | common for row in self.rows], self._table.schema())
        )
        self.rows = []
        self._kept = pa.concat_tables([self._kept, new])
        full = self._kept.num_rows >= ROWS_PER_FILE
        name = f"{crawl:06d}-{time.time_ns()}"
        path = self._table.append(self._last_of_each(self._kept) if full else new, name)
        self._small.append(path)
        if full:  # a kill before the small ones are gone leaves rows twice; they are the same
            self._table.delete(self._small[:-1])
            self._small, self._kept = [], self._kept.slice(0, 0)

    def _last_of_each(self, rows: pa.Table) -> pa.Table:
        """A file holds a key once."""
        numbered = rows.append_column("number", pa.array(np.arange(rows.num_rows)))
        last = numbered.group_by(self._table.kind.key).aggregate([("number", "max")])["number_max"]
        return rows.take(last.sort())


class _Known:
    """The newest state of each track: what the library holds in arrays, what this crawl adds beside."""

    def __init__(self, library: Library, source: Source) -> None:
        self._source = source
        names = ["track_key", "crawl", "audio_checksum", "checksum"]
        table = library.table("tracks").read(names)
        keys, crawls, audio_checksums, checksums = (table.column(name).to_numpy() for name in names)
        order = np.lexsort((crawls, keys))
        tracks = keys[order] >> REVISION_BITS
        order = order[last_of_equal(tracks)]
        self._keys: Keys = keys[order]
        self._audio_checksums, self._checksums = audio_checksums[order], checksums[order]
        self._added: dict[int, tuple[int, int, int]] = {}  # key at revision 0 -> both checksums, revision
        self._removed = set(library.table("removed").read(["track_id"])["track_id"].to_pylist())

    def compare(self, track_id: str, audio_checksum: int, checksum: int) -> tuple[str, int]:
        """The verdict on a track (one of VERDICTS), and its revision now.

        Of several descriptions in one crawl the fullest counts. Those from pages that tell only some of a
        track's fields, and those from elsewhere than its own source, never replace a fuller one.
        Raises ValueError where another track has the same key.
        """
        first = track_key(track_id, 0)
        before = self._added.get(first) or self._stored(first)
        if before and before[0] >> 32 != audio_checksum >> 32:
            raise ValueError(f"the key of {track_id} is taken by another track: give it another id")
        if track_id in self._removed:
            return "removed", 0
        if before and first in self._added:
            fuller = checksum & FULLNESS > before[1] & FULLNESS
            self._added[first] = (before[0], checksum if fuller else before[1], before[2])
            return ("completed" if fuller else "duplicate"), before[2]
        verdict, revision = self._against_stored(track_id, before, audio_checksum, checksum)
        kept = before if before and verdict == "unchanged" else (audio_checksum, checksum, revision)
        self._added[first] = kept
        return verdict, revision

    def _stored(self, first: int) -> tuple[int, int, int] | None:
        row = np.searchsorted(self._keys, first + (1 << REVISION_BITS)) - 1
        if row < 0 or int(self._keys[row]) < first:
            return None
        return int(self._audio_checksums[row]), int(self._checksums[row]), int(self._keys[row]) - first

    def _against_stored(
        self, track_id: str, stored: tuple[int, int, int] | None, audio_checksum: int, checksum: int
    ) -> tuple[str, int]:
        if stored is None:
            return "new", 0
        poorer = checksum & FULLNESS < stored[1] & FULLNESS
        foreign = not track_id.startswith(f"{self._source.name}:")
        if checksum == stored[1] or foreign or (poorer and not self._source.is_complete):
            return "unchanged", stored[2]
        return "changed", stored[2] + (stored[0] != audio_checksum)


def _fullness_and_checksum(track: dict[str, Any]) -> int:
    return _checksum(track) & ~FULLNESS | sum(value not in (None, "", []) for value in track.values())


def _checksum(record: dict[str, Any]) -> int:
    return hash64(json.dumps(record, sort_keys=True))


def _audio_checksum(track: dict[str, Any]) -> int:
    """Upper half: a second hash of the id, by which two ids of one key are told apart."""
    lower = hash64(track["audio_version"]) & 0xFFFFFFFF
    return (hash64("id", track["track_id"]) >> 32) << 32 | lower
