"""Amends a library: removes tracks from all tables and indexes, or schedules failed tracks for another
try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from songray.cluster import connect
from songray.errors import InvalidOption
from songray.keys import REVISION_BITS, Keys, numbered_key
from songray.library import Library
from songray.search.version import delete
from songray.storage import storage_errors, write_parquet
from songray.table import Table


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
    """Remove tracks from all tables, and record their ids so that later crawls skip them. Returns a summary.

    Files that hold them are rewritten, each whole or not at all; a run that was killed can be started again.
    No stage may run at the same time: it might be reading those files."""
    ids = config.ids()
    record(library, ids, config.reason)
    numbers = track_numbers(library, ids)
    deleted = {run: delete(library, run, numbers) for run in library.folders("indexes")}
    tables = [table for table in library.tables() if "track_id" in table.kind.columns]
    tables.sort(key=lambda table: table.name == "tracks")  # last: a second try needs its numbers
    counts = {table.name: remove_from(table, ids) for table in tables if table.name != "removed"}
    rows = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"
    indexes = ", ".join(f"{run} {count}" for run, count in deleted.items() if count)
    remark = (
        f"; deleted from indexes: {indexes} (`songray compact` also frees their space)" if indexes else ""
    )
    return f"remove: {len(ids)} tracks; rows removed: {rows}{remark}"


def record(library: Library, ids: Sequence[str], reason: str) -> None:
    """Add the ids to the table `removed`."""
    table = library.table("removed")
    existing = set(table.read(["track_id"])["track_id"].to_pylist())
    now = datetime.now(UTC)
    new = [name for name in ids if name not in existing]
    rows = [{"track_id": name, "reason": reason, "removed_at": now} for name in new]
    if rows:
        table.append(pa.Table.from_pylist(rows, table.schema()), f"{now:%Y%m%dT%H%M%S}")


def track_numbers(library: Library, ids: Sequence[str]) -> Keys:
    """The numbers by which indexes know some tracks, as `tracks` records them; sorted."""
    tracks = library.table("tracks").read(["track_id", "track_key"])
    named = tracks.filter(pa.compute.is_in(tracks["track_id"], pa.array(ids, pa.string())))
    return np.unique(named["track_key"].to_numpy() >> REVISION_BITS)


def remove_from(table: Table, ids: Sequence[str]) -> int:
    """Rewrite the files of a table that hold some of the tracks, in parallel. Returns the number of rows."""
    files = table.files()
    if not files:
        return 0
    connect()
    import ray.data  # loaded only where there is a file to rewrite

    items = ray.data.from_items(files, override_num_blocks=len(files))
    counts = items.map(lambda row: {"rows": rewrite(table, row["item"], ids)})
    return int(counts.sum("rows") or 0)


def rewrite(table: Table, path: str, ids: Sequence[str]) -> int:
    """Rewrite one file without some tracks, under its name. Returns how many rows they had."""
    names = table.read(["track_id"], files=[path])["track_id"]
    is_removed = pa.compute.is_in(names, pa.array(ids, pa.string())).to_numpy()
    if is_removed.any():
        with storage_errors(path), table.filesystem.open_input_file(path) as file:
            parquet = pa.parquet.ParquetFile(file)
            row_group_rows = parquet.metadata.row_group(0).num_rows
            kept = parquet.read().filter(pa.array(~is_removed))
        write_parquet(table.filesystem, path, kept, row_group_rows)
    return int(is_removed.sum())


@dataclass(frozen=True)
class ReviseConfig:
    errors: tuple[str, ...] = ()
    """Classes of failures, as the summaries of stages print them: http_403, not_audio, …"""
    table: str = "previews"
    """Table in which the failures are stored: previews, or spectrograms/<set>."""


def revise(library: Library, config: ReviseConfig) -> str:
    """Give the tracks with certain permanent failures a new revision, so that the next run of each stage
    processes them again. Returns a summary. Raises InvalidOption where no such failure is stored."""
    newest = library.table(*config.table.split("/")).newest(["track_key", "error"]).rows
    failed = newest.filter(pa.compute.is_in(newest["error"], pa.array(config.errors, pa.string())))
    if not failed.num_rows:
        classes = ", ".join(sorted(set(newest["error"].drop_null().to_pylist()))) or "none"
        given = " ".join(config.errors)
        raise InvalidOption(f"--errors {given}: the failures in {config.table} are: {classes}")
    tracks = library.table("tracks")
    existing = tracks.newest(tracks.schema().names).rows
    revised = existing.filter(pa.array(np.isin(existing["track_key"], failed["track_key"])))
    rows = [
        row
        | {
            "revision": (revision := row["revision"] + 1),
            "track_key": numbered_key(row["track_key"] >> REVISION_BITS, revision, row["track_id"]),
        }
        for row in revised.to_pylist()
    ]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), f"revised-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    return f"revise: {len(rows)} tracks have a new revision: run the stages from `songray download` on"
