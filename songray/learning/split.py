"""Which tracks a model learns from, and which validate it: a split by artist and recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from songray.errors import MissingInput
from songray.keys import Keys, KeySet, sample_rank
from songray.learning.runs import split_path
from songray.library import Library, Row
from songray.storage import delete, write_parquet


@dataclass(frozen=True)
class Split:
    """Sorted keys of the tracks of each part."""

    train: Keys
    validation: Keys
    # For a track that shares its recording with others: their least key, unless that is its own.
    same_recording: dict[int, int] = field(default_factory=dict)


def split(tracks: pa.Table, validation_share: float, seed: int) -> Split:
    """Split tracks by group: artists who share a track form one group, as do tracks of the same recording.

    The sample rank of a group decides its part, so a group keeps its part when other tracks join the
    catalogue. No part is empty: otherwise the group nearest to the threshold changes its part, and where all
    tracks form one group, each track counts as a group. Raises MissingInput for fewer than two tracks.
    """
    keys = tracks.column("track_key").to_numpy()
    if keys.size < 2:
        raise MissingInput(f"{keys.size} tracks: at least two are needed, one to train and one to validate")
    groups = _groups(tracks)
    if len(set(groups)) == 1:
        groups = tracks.column("track_id").to_pylist()
    rank = np.array([sample_rank(str(seed), group) for group in groups])
    in_validation = rank < validation_share
    if not in_validation.any():
        in_validation = rank == rank.min()
    elif in_validation.all():
        in_validation = rank != rank.max()
    return Split(np.sort(keys[~in_validation]), np.sort(keys[in_validation]), _same_recording(tracks))


def _same_recording(tracks: pa.Table) -> dict[int, int]:
    rows = tracks.select(["track_key", "recording", "isrc"]).to_pylist()
    pairs = sorted((row["track_key"], recording) for row in rows if (recording := _recording(row)))
    least: dict[str, int] = {}
    first = {key: least.setdefault(recording, key) for key, recording in pairs}
    return {key: other for key, other in first.items() if key != other}


def _recording(row: Row) -> str:
    return row["recording"] or row["isrc"] or ""


def _groups(tracks: pa.Table) -> list[str]:
    """For each track the name of its group: the first, in order, of the members of the group."""
    # Loaded when called, since jobs import this module for their options.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = tracks.select(["track_id", "artist_ids", "recording", "isrc"]).to_pylist()
    members = [_members(row) for row in rows]
    names = sorted({name for group in members for name in group})
    number = {name: position for position, name in enumerate(names)}
    edges = [(number[group[0]], number[other]) for group in members for other in group]
    ends = np.array(edges).T
    graph = coo_array((np.ones(len(edges)), (ends[0], ends[1])), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    return [names[first[component[number[group[0]]]]] for group in members]


def _members(row: Row) -> Sequence[str]:
    """The artists and the recording of a track; its id where it has neither."""
    artists, recording = row["artist_ids"], _recording(row)
    return [*artists, *([f"recording:{recording}"] if recording else [])] or [str(row["track_id"])]


def read_split(library: Library, run: str) -> Split | None:
    """The stored split of a run, or None."""
    path = split_path(library, run)
    if not library.filesystem.get_file_info(path).is_file:
        return None
    table = pa.parquet.read_table(path, filesystem=library.filesystem)
    keys, held_out = table["track_key"].to_numpy(), table["held_out"].to_numpy()
    shared = table.filter(table["recording"].is_valid())
    same_recording = zip(shared["track_key"].to_pylist(), shared["recording"].to_pylist(), strict=True)
    return Split(keys[~held_out], keys[held_out], dict(same_recording))


def write_split(library: Library, run: str, parts: Split) -> None:
    keys = np.concatenate([parts.train, parts.validation])
    held_out = np.repeat([False, True], [parts.train.size, parts.validation.size])
    same_recording = pa.array([parts.same_recording.get(key) for key in keys.tolist()], pa.int64())
    table = pa.table({"track_key": keys, "held_out": held_out, "recording": same_recording})
    write_parquet(library.filesystem, split_path(library, run), table)


def remove_from_split(library: Library, run: str, tracks: KeySet) -> int:
    """Write the stored split of a run without some tracks. Returns how many of them it had."""
    delete(library.filesystem, f"{split_path(library, run)}.part")  # of a writer that was killed
    parts = read_split(library, run)
    if parts is None:
        return 0
    kept = without(parts, tracks)
    removed = parts.train.size + parts.validation.size - kept.train.size - kept.validation.size
    if removed:
        write_split(library, run, kept)
    return removed


def without(parts: Split, tracks: KeySet) -> Split:
    """A split without some tracks. What shared its recording with one shares it with those that remain."""
    train, validation = (part[~tracks.contains(part)] for part in (parts.train, parts.validation))
    least: dict[int, int] = {}
    same_recording = {}
    for key in np.sort(np.concatenate([train, validation])).tolist():
        first = least.setdefault(parts.same_recording.get(key, key), key)
        if first != key:
            same_recording[key] = first
    return Split(train, validation, same_recording)
