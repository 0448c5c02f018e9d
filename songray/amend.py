"""Amends a library by hand: takes tracks out of all tables, or has failed ones tried anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import ray.data

from songray.library import REVISION_BITS, Keys, Library, Table, newest_revisions, track_key, write_parquet
from songray.search.version import delete


@dataclass(frozen=True)
class RemoveConfig:
    tracks: tuple[str, ...] = ()
    """Ids to take out, such as deezer:3135556."""
    file: Path | None = None
    """File with more of them, one a line."""
    reason: str = ""
    """Noted beside each."""

    def ids(self) -> list[str]:
        """Raises ValueError where none is named."""
        lines = self.file.read_text().splitlines() if self.file else []
        named = [*self.tracks, *(line.strip() for line in lines if line.strip())]
        if not named:
            raise ValueError("no track is named: give --tracks or --file")
        return list(dict.fromkeys(named))


def remove(library: Library, config: RemoveConfig) -> str:
    """Take tracks out of all tables, and keep them out of later crawls; what was done, in a sentence.

    Files that hold them are written anew, each whole or not at all; killed, call it again. Not to be run
    beside a stage, which may be reading those files.
    """
    ids = config.ids()
    note(library, ids, config.reason)
    keys = np.sort([track_key(track_id, 0) >> REVISION_BITS for track_id in ids])
    removed = {}
    for table in library.tables():
        if {"track_key", "track_id"} & set(table.kind.columns) and table.name != "removed":
            removed[table.name] = remove_from(table, ids, keys)
    told = ", ".join(f"{name} {rows}" for name, rows in removed.items() if rows) or "none"
    deleted = {run: delete(library, run, keys) for run in library.folders("indexes")}
    indexes = ", ".join(f"{run} {count}" for run, count in deleted.items() if count)
    left = f"; answers of indexes: {indexes} (jobs/compact.py also frees their place)" if indexes else ""
    return f"remove: {len(ids)} tracks; rows taken out: {told}{left}"


def note(library: Library, ids: Sequence[str], reason: str) -> None:
    table = library.table("removed")
    known = set(table.read(["track_id"])["track_id"].to_pylist())
    now = datetime.now(UTC)
    rows = [{"track_id": name, "reason": reason, "removed_at": now} for name in ids if name not in known]
    if rows:
        table.append(pa.Table.from_pylist(rows, table.schema()), f"{now:%Y%m%dT%H%M%S}")


def remove_from(table: Table, ids: Sequence[str], keys: Keys) -> int:
    """Write the files of a table anew that hold some of the tracks; the number of rows taken out."""
    files = table.files()
    if not files:
        return 0
    items = ray.data.from_items(files, override_num_blocks=len(files))
    counts = items.map(lambda row: {"rows": rewrite(table, row["item"], ids, keys)})
    return int(counts.sum("rows") or 0)


def rewrite(table: Table, path: str, ids: Sequence[str], keys: Keys) -> int:
    """Leave tracks out of one file, whose name stays; how many rows that were."""
    column = "track_key" if "track_key" in table.kind.columns else "track_id"
    held = table.read([column], files=[path])[column]
    if column == "track_key":
        gone = np.isin(held.to_numpy() >> REVISION_BITS, keys)
    else:
        gone = pa.compute.is_in(held, pa.array(ids, pa.string())).to_numpy()
    if gone.any():
        with table.filesystem.open_input_file(path) as file:
            parquet = pa.parquet.ParquetFile(file)
            row_group_rows = parquet.metadata.row_group(0).num_rows
            kept = parquet.read().filter(pa.array(~gone))
        write_parquet(table.filesystem, path, kept, row_group_rows)
    return int(gone.sum())


@dataclass(frozen=True)
class ReviseConfig:
    errors: tuple[str, ...] = ()
    """Classes of failures, as the stages print them: http_403, not_audio, …"""
    table: str = "previews"
    """Where they are noted: previews, or spectrograms/<set>."""


def revise(library: Library, config: ReviseConfig) -> str:
    """Give the tracks that failed for good with certain errors a new revision, so that the next run of each
    stage tries them anew; what was done, in a sentence. Raises ValueError where no such error is noted."""
    rows = library.table(*config.table.split("/")).read(["track_key", "error"])
    newest = rows.filter(pa.array(np.isin(rows["track_key"], newest_revisions(np.unique(rows["track_key"])))))
    failed = newest.filter(pa.compute.is_in(newest["error"], pa.array(config.errors, pa.string())))
    if not failed.num_rows:
        noted = ", ".join(sorted(set(newest["error"].drop_null().to_pylist()))) or "none"
        raise ValueError(f"--errors {' '.join(config.errors)}: {config.table} notes {noted}")
    tracks = library.table("tracks")
    known = tracks.newest(tracks.schema().names)
    revised = known.filter(pa.array(np.isin(known["track_key"], failed["track_key"])))
    rows = [
        row | {"revision": row["revision"] + 1, "track_key": track_key(row["track_id"], row["revision"] + 1)}
        for row in revised.to_pylist()
    ]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), f"revised-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    return f"revise: {len(rows)} tracks have a new revision: run the stages from jobs/download.py on"
