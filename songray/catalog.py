"""Reads a source; writes tracks, artists, playlists, and the pages that it read."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import ray.data
import tyro

from songray.library import REVISION_BITS, TABLES, Keys, Library, hash64, track_key
from songray.sources.base import Artist, Contents, Page, PlaylistEntry, Source, Track
from songray.sources.folder import FolderSource
from songray.sources.manifest import ManifestSource
from songray.sources.synthetic import SyntheticSource
from songray.stages import SECONDS_BETWEEN_LINES

TRACKS_PER_FILE = 5000
VERDICTS = ("new", "changed", "unchanged", "duplicate")
EXAMPLES = 5  # problems that the summary quotes

Flat = tyro.conf.arg(name="")  # the options of all sources stand side by side


@dataclass(frozen=True)
class CrawlConfig:
    max_tracks: int | None = None
    """Stop after so many tracks that the library did not know; the next crawl goes on from there."""
    max_requests: int | None = None
    """Stop after so many pages; the next crawl goes on from there."""
    max_depth: int = 2
    """How many links to follow away from what was named: from an artist to related ones, and on."""
    refresh: bool = False
    """Read again also what cannot tell whether it has changed: searches, artists, albums."""


@dataclass
class CrawlSummary:
    source: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        count = self.counts
        text = (
            f"crawl: {self.source}: {count['read']} pages read, {count['before']} read before; tracks: "
            f"{count['new']} new, {count['changed']} changed, {count['unchanged']} unchanged, "
            f"{count['duplicate']} more than once ({self.seconds:.1f} s)"
        )
        lines = [f"{count} × {name}" for name, count in self.problems.most_common()]
        return "\n  ".join([text, *lines, *self.examples])


def crawl(library: Library, config: CrawlConfig) -> CrawlSummary:
    """Read the pages that are new or changed, on all nodes, and write what they hold.

    A page counts as read once all that it holds is written: a killed crawl goes on from there.
    Raises ValueError on options that cannot work.
    """
    started = time.monotonic()
    catalog = Catalog(library, config.source)
    pages = [page for page in config.chosen.pages() if not catalog.has_read(page)]
    catalog.pages = len(pages)
    if pages:
        items = ray.data.from_items([dataclasses.asdict(page) for page in pages])
        pieces = items.map_batches(
            read_batch, fn_args=(config.chosen,), batch_size=32, batch_format="pyarrow"
        )
        for batch in pieces.iter_batches(batch_size=None, batch_format="pyarrow"):
            catalog.add(batch)
    catalog.write()
    catalog.summary.seconds = time.monotonic() - started
    return catalog.summary


def read_batch(pages: pa.Table, source: Source) -> Iterator[pa.Table]:
    """The pieces of some pages, in the schema PIECES."""
    for row in pages.to_pylist():
        page = Page(**row)
        try:
            for contents in source.read(page):
                yield _piece(page, contents, finished=False)
            yield _piece(page, Contents(), finished=True)
        except (OSError, ValueError) as error:
            problem = f"unreadable: {page.name}: {error}"
            yield _piece(page, Contents(problems=[problem]), finished=True)


def _fields(record: type[Any], table: str, **more: pa.DataType) -> pa.DataType:
    types = {**TABLES[table].columns, **more}
    return pa.list_(pa.struct({column.name: types[column.name] for column in dataclasses.fields(record)}))


PIECES = pa.schema(
    {
        "page": pa.string(),
        "fingerprint": pa.string(),
        "finished": pa.bool_(),  # nothing more comes of this page
        "tracks": _fields(Track, "tracks", audio_version=pa.string()),
        "artists": _fields(Artist, "artists"),
        "playlist_entries": _fields(PlaylistEntry, "playlists"),
        "problems": pa.list_(pa.string()),
    }
)


def _piece(page: Page, contents: Contents, finished: bool) -> pa.Table:
    row = {"page": page.name, "fingerprint": page.fingerprint, "finished": finished}
    return pa.Table.from_pylist([row | dataclasses.asdict(contents)], PIECES)


class Catalog:
    """What the library knows of one source, and what it is told now.

    Memory: 24 bytes a track that was known, some 300 a track that is new in this crawl.
    """

    def __init__(self, library: Library, source: str) -> None:
        self.library = library
        self.source = source
        self.summary = CrawlSummary(source)
        pages = library.table("pages").read()
        self.crawl = (pa.compute.max(pages.column("crawl")).as_py() or 0) + 1
        mine = pages.filter(pa.compute.equal(pages.column("source"), source)).sort_by("crawl")
        self._read = dict(zip(mine["page"].to_pylist(), mine["fingerprint"].to_pylist(), strict=True))
        artists = library.table("artists").read(["artist_id", "name", "genres"]).to_pylist()
        self._artists = {_checksum(artist) for artist in artists}
        self._known = _Known(library)
        self._files = 0
        self._told = time.monotonic()
        self.pages = 0  # to read, for the progress
        self._clear()

    def has_read(self, page: Page) -> bool:
        known = self._read.get(page.name) == page.fingerprint
        self.summary.counts["before"] += known
        return known

    def add(self, pieces: pa.Table) -> None:
        """Take pieces of pages, in the schema PIECES; write when enough have come."""
        for piece in pieces.to_pylist():
            self._tracks.extend(piece["tracks"])
            self._new_artists.extend(piece["artists"])
            self._entries.extend(piece["playlist_entries"])
            self._note(piece)
        if len(self._tracks) + len(self._entries) >= TRACKS_PER_FILE:
            self.write()
        self._tell_progress()

    def _tell_progress(self) -> None:
        if time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            found = len(self._tracks) + sum(self.summary.counts[name] for name in VERDICTS)
            line = f"crawl: {found} tracks on {self.summary.counts['read']} of {self.pages} pages"
            print(line, file=sys.stderr, flush=True)

    def _note(self, piece: dict[str, Any]) -> None:
        problems = piece["problems"]
        self.summary.problems.update(problem.split(":", 1)[0] for problem in problems)
        self.summary.examples.extend(problems[: EXAMPLES - len(self.summary.examples)])
        self._problems.setdefault(piece["page"], []).extend(problems)
        if piece["finished"]:
            self.summary.counts["read"] += 1
            row = {"page": piece["page"], "fingerprint": piece["fingerprint"]}
            self._pages.append(row | {"problems": self._problems.pop(piece["page"])})

    def write(self) -> None:
        """Write what has come: pages last, so that a page that counts as read is in the tables."""
        self._append("tracks", self._rows_of_tracks())
        self._append("artists", self._rows_of_artists())
        self._append("playlists", self._entries)
        self._append("pages", self._pages)
        self._files += 1
        self._clear()

    def _clear(self) -> None:
        self._tracks: list[dict[str, Any]] = []
        self._new_artists: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []
        self._pages: list[dict[str, Any]] = []
        self._problems: dict[str, list[str]] = getattr(self, "_problems", {})

    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        common = {"crawl": self.crawl, "source": self.source}
        table = self.library.table(name)
        found = pa.Table.from_pylist([row | common for row in rows], table.schema())
        if found.num_rows:
            table.append(found, f"{self.crawl:06d}-{self._files:06d}")

    def _rows_of_tracks(self) -> Iterator[dict[str, Any]]:
        for track in self._tracks:
            checksums = {"audio_checksum": _audio_checksum(track), "checksum": _checksum(track)}
            verdict, revision = self._known.compare(track["track_id"], **checksums)
            self.summary.counts[verdict] += 1
            if verdict in ("new", "changed"):
                key = track_key(track["track_id"], revision)
                yield track | checksums | {"track_key": key, "revision": revision}

    def _rows_of_artists(self) -> Iterator[dict[str, Any]]:
        for artist in self._new_artists:
            if (checksum := _checksum(artist)) not in self._artists:
                self._artists.add(checksum)
                yield artist


class _Known:
    """The newest state of each track: what the library holds in arrays, what this crawl adds beside."""

    def __init__(self, library: Library) -> None:
        names = ["track_key", "crawl", "audio_checksum", "checksum"]
        table = library.table("tracks").read(names)
        keys, crawls, audio_checksums, checksums = (table.column(name).to_numpy() for name in names)
        order = np.lexsort((crawls, keys))
        tracks = keys[order] >> REVISION_BITS
        order = order[np.append(tracks[1:] != tracks[:-1], True)] if order.size else order
        self._keys: Keys = keys[order]
        self._audio_checksums, self._checksums = audio_checksums[order], checksums[order]
        self._added: dict[int, int] = {}  # key at revision 0 -> audio checksum

    def compare(self, track_id: str, audio_checksum: int, checksum: int) -> tuple[str, int]:
        """The verdict on a track (new, changed, unchanged or duplicate), and its revision now.

        Raises ValueError where another track has the same key.
        """
        first = track_key(track_id, 0)
        row = np.searchsorted(self._keys, first + (1 << REVISION_BITS)) - 1
        stored = row >= 0 and int(self._keys[row]) >= first
        before = self._added.get(first, int(self._audio_checksums[row]) if stored else audio_checksum)
        if before >> 32 != audio_checksum >> 32:
            raise ValueError(f"the key of {track_id} is taken by another track: give it another id")
        if first in self._added:
            return "duplicate", 0
        self._added[first] = audio_checksum
        if not stored:
            return "new", 0
        revision = int(self._keys[row]) - first
        if int(self._checksums[row]) == checksum:
            return "unchanged", revision
        return "changed", revision + (before != audio_checksum)


def _checksum(record: dict[str, Any]) -> int:
    return hash64(json.dumps(record, sort_keys=True))


def _audio_checksum(track: dict[str, Any]) -> int:
    """Upper half: a second hash of the id, by which two ids of one key are told apart."""
    lower = hash64(track["audio_version"]) & 0xFFFFFFFF
    return (hash64("id", track["track_id"]) >> 32) << 32 | lower
