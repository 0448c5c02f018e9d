"""Writes the files of a shard: its graph, vectors, rows with computed columns, and text search."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from songray.keys import hash64
from songray.library import Vectors
from songray.search import text
from songray.search.halves import unit_vectors
from songray.search.hnsw import GraphOptions, build_graph
from songray.search.reference import Reference
from songray.search.rows import COMPUTED, SHOWN, TAGS, read_rows
from songray.search.tags import Levels
from songray.search.version import TEXT, TRACKS, VECTORS


class Measured(NamedTuple):
    ef: int  # the smallest that reaches the recall target, else the largest
    recall: float  # at that ef


def write_shard(
    folder: Path,
    vectors: Vectors,
    tracks: pa.Table,
    reference: Reference,
    options: GraphOptions,
    before: Path | None = None,
) -> Measured:
    """Write a shard of unit vectors, (tracks, dimension), and their rows (`track_key`, `checksum`, SHOWN and,
    where the run gives tags, TAGS), appended to those of the shard in the folder `before`, if given."""
    halves = vectors.astype(np.float16)
    existing = np.load(before / VECTORS) if before else halves[:0]
    old_graph = (before, unit_vectors(existing)) if before else None
    graph, ef, recall = build_graph(unit_vectors(halves), options, old_graph)
    graph.save(folder)
    np.save(folder / VECTORS, np.concatenate([existing, halves]))
    rows = with_computed_columns(tracks, vectors, reference)
    if before:
        stored = pa.Table.from_batches([read_rows(before)])
        rows = pa.concat_tables([stored.select(rows.schema.names), rows])  # earlier versions wrote more
        shutil.copy(before / TEXT, folder / TEXT)
    with pa.ipc.new_file(folder / TRACKS, rows.schema) as file:
        file.write_table(rows.combine_chunks())
    text.add_tracks(folder / TEXT, tracks, first=len(existing))
    return Measured(ef, recall)


def with_computed_columns(tracks: pa.Table, vectors: Vectors, reference: Reference) -> pa.Table:
    """The rows with the columns of COMPUTED, each named with an underscore before."""
    rows = tracks.select(["track_key", "checksum", *SHOWN])
    x, y = reference.place(vectors).T
    columns = {"x": x, "y": y, "cluster": reference.cluster(vectors), **_hashes(tracks)}
    for name, dtype in COMPUTED.items():
        rows = rows.append_column(f"_{name}", pa.array(np.asarray(columns[name], dtype)))
    return rows.append_column(TAGS, tracks[TAGS]) if TAGS in tracks.schema.names else rows


def level_column(levels: Levels) -> pa.FixedSizeBinaryArray:
    """The column TAGS: a cell of bytes a track."""
    kind = pa.binary(levels.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(levels), [None, pa.py_buffer(levels.tobytes())])


def _hashes(tracks: pa.Table) -> dict[str, object]:
    """Numbers in place of texts, 0 where they are unknown, and the duration in seconds."""
    hashed = cache(lambda value: hash64(value) if value else 0)

    def first_of(*names: str) -> list[int]:
        columns = zip(*(tracks[name].to_pylist() for name in names), strict=True)
        return [hashed(next(filter(None, values), None)) for values in columns]

    artists = zip(tracks["artist_ids"].to_pylist(), tracks["artist_names"].to_pylist(), strict=True)
    dates = tracks["release_date"].to_pylist()
    return {
        "artist": [hashed((ids or names or [""])[0]) for ids, names in artists],
        "album": first_of("album_id", "album"),
        "recording": first_of("recording", "isrc"),
        "title": [hashed(text.bare_title(title or "")) for title in tracks["title"].to_pylist()],
        "duration": tracks["duration_seconds"].to_numpy(zero_copy_only=False),
        "year": [int(date[:4]) if date and date[:4].isdigit() else 0 for date in dates],
    }
