"""Amends a library: removes tracks from all tables and indexes, or schedules failed tracks for another
try."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from songray.catalogue.existing import ExistingTracks
from songray.catalogue.states import TrackState
from songray.cluster import connect
from songray.errors import Conflict, InvalidOption
from songray.keys import REVISION_BITS, Keys
from songray.learning.split import remove_from_split
from songray.library import Library
from songray.search.erase import erase
from songray.search.stored_maps import remove_from_map
from songray.storage import list_files, storage_errors, write_parquet
from songray.table import Table
from songray.tables import TABLES
from songray.takedown import Takedown, columns_read, find_takedown, without

DRIVER_FILES = 64  # up to so many are rewritten by this process, in less time than Ray's start takes
# The tables that may hold something of a track, in the order in which it is removed: a removal that was
# killed must still find, in `tracks`, the numbers of its tracks, and in `previews`, who has their audio.
REMOVED_FROM = ("maps", "embeddings", "spectrograms", "factors", "judgements", "playlists", "pages",
                "previews", "tracks")  # fmt: skip


@dataclass(frozen=True)
class RemoveConfig:
    tracks: tuple[str, ...] = ()
    """Ids of the tracks to remove, such as deezer:3135556."""
    file: Path | None = None
    """File with further ids, one a line."""
    reason: str = ""
    """Text that is stored with each id."""

    def ids(self) -> list[str]:
        """The ids without repetitions. Raises InvalidOption where there is none."""
        try:
            lines = self.file.read_text().splitlines() if self.file else []
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidOption(f"--file {self.file} cannot be read: {error}") from error
        ids = [*self.tracks, *(line.strip() for line in lines if line.strip())]
        if not ids:
            raise InvalidOption("no track is named: give --tracks or --file")
        return list(dict.fromkeys(ids))


def remove(library: Library, config: RemoveConfig) -> str:
    """Remove tracks from the library, and record their ids so that later crawls skip them. Returns a summary.

    No row of a table and no file of an index holds them then, in any version, nor audio of theirs that was
    fetched for other tracks, nor what was computed from it. Files are rewritten, each whole or not at all; a
    run that was killed can be started again. Raises Conflict where another process writes one of the tables,
    a run or an index.
    """
    ids = config.ids()
    with ExitStack() as stack:
        held = {name: stack.enter_context(library.lease(name)) for name in outputs(library)}
        record(library, ids, config.reason)
        tables = [library.table(name) for name in held if name.split("/")[0] in REMOVED_FROM]
        tables.sort(key=lambda table: REMOVED_FROM.index(table.name.split("/")[0]))
        for table in tables:
            table.clean()
        takedown = find_takedown(library, ids)
        indexes, counts = {}, {}
        for name, lease in held.items():
            kind, _, run = name.partition("/")
            if kind == "indexes" and run:
                indexes[run] = erase(library, run, takedown.derived, lease)
            elif kind == "runs" and run:
                lease.check()
                counts[f"{name}/split"] = remove_from_split(library, run, takedown.derived)
            elif kind == "maps":
                lease.check()
                counts[f"{name}/reference"] = remove_from_map(library.table(name), takedown.derived)
        for table in tables:
            held[table.name].check()
            counts[table.name] = remove_from(table, takedown)
    rows = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"
    deleted = ", ".join(f"{run} {count}" for run, count in indexes.items() if count)
    remark = f"; tracks removed from indexes: {deleted}" if deleted else ""
    return f"remove: {len(ids)} tracks; rows removed: {rows}{remark}"


def outputs(library: Library) -> list[str]:
    """What jobs write: tables, runs and indexes, under the names of their leases."""
    others = [f"{kind}/{run}" for kind in ("runs", "indexes") for run in library.folders(kind)]
    return [*(name for kind in TABLES for name in library.names(kind)), *others]


def record(library: Library, ids: Sequence[str], reason: str) -> None:
    """Add the ids to the table `removed`."""
    table = library.table("removed")
    existing = set(table.read(["track_id"])["track_id"].to_pylist())
    now = datetime.now(UTC)
    new = [name for name in ids if name not in existing]
    rows = [{"track_id": name, "reason": reason, "removed_at": now} for name in new]
    if rows:
        table.append(pa.Table.from_pylist(rows, table.schema()), f"{now:%Y%m%dT%H%M%S}")


def remove_from(table: Table, takedown: Takedown) -> int:
    """Rewrite the files of a table that hold something of the tracks, and the checkpoints that have their
    keys, in parallel. Returns the number of rows that were dropped or changed."""
    notes = list_files(table.filesystem, table.checkpoint_path)
    files = [*table.files(), *(path for path in notes if path.endswith(".parquet"))]
    if len(files) <= DRIVER_FILES:
        removed = sum(rewrite(table, path, takedown) for path in files)
    else:
        connect()
        import ray.data

        items = ray.data.from_items(files, override_num_blocks=len(files))
        counts = items.map(lambda row: {"rows": rewrite(table, row["item"], takedown)})
        removed = int(counts.sum("rows") or 0)
    table.forget_keys()
    return removed


def rewrite(table: Table, path: str, takedown: Takedown) -> int:
    """Rewrite one file without what it holds of the tracks, under its name. Returns how many rows were
    dropped or changed; those of a checkpoint do not count."""
    is_note = posixpath.dirname(path) == table.checkpoint_path
    with storage_errors(path), table.filesystem.open_input_file(path) as file:
        parquet = pa.parquet.ParquetFile(file)
        if is_note:
            rows = parquet.read()
            kept = rows.filter(pa.array(~takedown.keys(table.name).contains(rows["track_key"].to_numpy())))
            count = rows.num_rows - kept.num_rows
        else:
            columns = columns_read(table.name, parquet.schema_arrow.names)
            _, count = without(table.name, parquet.read(columns), takedown)
            if count:
                kept, _ = without(table.name, parquet.read(), takedown)
        row_group_rows = parquet.metadata.row_group(0).num_rows if count else 0
    if count:
        write_parquet(table.filesystem, path, kept, row_group_rows)
    return 0 if is_note else count


@dataclass(frozen=True)
class ReviseConfig:
    errors: tuple[str, ...] = ()
    """Classes of failures, as the summaries of stages print them: http_403, not_audio, …"""
    table: str = "previews"
    """Table in which the failures are stored: previews, or spectrograms/<set>."""


def revise(library: Library, config: ReviseConfig) -> str:
    """Give the tracks with certain permanent failures a new revision, so that the next run of each stage
    processes them again. Returns a summary. Raises InvalidOption where no such failure is stored."""
    failed, classes = failed_keys(library.table(*config.table.split("/")), config.errors)
    if not failed.size:
        given = " ".join(config.errors)
        raise InvalidOption(
            f"--errors {given}: the failures in {config.table} are: {', '.join(sorted(classes)) or 'none'}"
        )
    with library.lease("tracks") as lease:
        tracks = library.table("tracks")
        columns = [name for name in tracks.schema().names if name != "track_key"]
        rows = tracks.newest_rows(np.unique(failed >> REVISION_BITS), columns)
        revised = rows.filter(pa.array(np.isin(rows["track_key"], failed))).to_pylist()
        states, refused = next_revisions(library, [row["track_id"] for row in revised])
        new = [one for row in revised if (state := states.get(row["track_id"])) for one in state.rows(row)]
        lease.check()
        if new:
            name = f"revised-{datetime.now(UTC):%Y%m%dT%H%M%S}"
            tracks.append(pa.Table.from_pylist(new, tracks.schema()), name)
    remark = f"\n  {len(refused)} × no_key: {refused[0]}" if refused else ""
    return (
        f"revise: {len(states)} tracks have a new revision: run the stages from `songray download` on{remark}"
    )


def failed_keys(table: Table, errors: Sequence[str]) -> tuple[Keys, set[str]]:
    """The keys of the tracks that failed permanently by one of the errors, and all errors that there are."""
    index, keys, classes = table.key_index(), [np.empty(0, np.int64)], set()
    for interval in index.intervals:
        rows = table.newest_between(index, interval, ["track_key", "error"]).rows
        is_named = pa.compute.is_in(rows["error"], pa.array(errors, pa.string()))
        keys.append(rows.filter(is_named)["track_key"].to_numpy())
        classes |= set(rows["error"].drop_null().unique().to_pylist())
    return np.concatenate(keys), classes


def next_revisions(library: Library, ids: Sequence[str]) -> tuple[dict[str, TrackState], list[str]]:
    """The states of tracks with their next revisions, by id, and why some have none."""
    existing, states, refused = ExistingTracks(library), {}, []
    existing.load(ids)
    for track_id in ids:
        try:
            if state := existing.revise(track_id):
                states[track_id] = state
        except Conflict as error:
            refused.append(str(error))
    return states, refused
