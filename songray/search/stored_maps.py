"""Maps in storage.

maps/<run>/<method>/_reference.npy  the tracks that the map is fitted to, with vectors and positions
maps/<run>/<method>/_map.json       how the map was made, and how far it can be trusted; written last
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

import numpy as np

from songray.keys import KeySet
from songray.library import Library, Row
from songray.search.maps import Faithfulness
from songray.search.reference import Reference
from songray.storage import delete, list_files, read_json, storage_errors
from songray.table import Table

REFERENCE, MAP = "_reference.npy", "_map.json"


class StoredMap(NamedTuple):
    """A map that was fitted."""

    table: Table
    made: Row  # the content of _map.json

    @property
    def id(self) -> str:
        return str(self.made["id"])

    @property
    def facts(self) -> dict[str, str | float]:
        """Its method, how far it can be trusted, and the number of its clusters, 0 in earlier versions."""
        stated = {name: self.made[name] for name in ("method", *Faithfulness._fields)}
        return stated | {"clusters": self.made.get("clusters", 0)}


def newest_map(library: Library, run: str) -> StoredMap | None:
    """The map of a run that was fitted last."""
    tables = [library.table("maps", run, method) for method in library.folders("maps", run)]
    stored = [(table, read_json(table.filesystem, posixpath.join(table.path, MAP))) for table in tables]
    fitted = [StoredMap(table, made) for table, made in stored if made]
    return max(fitted, key=lambda each: str(each.made["at"]), default=None)


def read_map_reference(table: Table) -> Reference:
    path = posixpath.join(table.path, REFERENCE)
    with storage_errors(path), table.filesystem.open_input_file(path) as stream:
        return Reference.from_array(np.load(stream))


def remove_from_map(table: Table, tracks: KeySet) -> int:
    """Delete the vectors and positions of some tracks that the map is fitted to; it stays as it is. Returns
    their number."""
    path = posixpath.join(table.path, REFERENCE)
    if not read_json(table.filesystem, posixpath.join(table.path, MAP)):
        clear(table)  # a fit that was killed
        delete(table.filesystem, path)
        return 0
    reference = read_map_reference(table)
    kept = reference.without(tracks.every_number())
    if len(kept.tracks) < len(reference.tracks):
        with storage_errors(path), table.filesystem.open_output_stream(path) as stream:
            stream.write(kept.to_bytes())
    return len(reference.tracks) - len(kept.tracks)


def clear(output: Table) -> None:
    """Delete what is stored of an earlier map."""
    delete(output.filesystem, posixpath.join(output.path, MAP))
    for folder in (output.checkpoint_path, output.path):
        for path in list_files(output.filesystem, folder):
            if path.endswith(".parquet"):
                delete(output.filesystem, path)
    output.forget_keys()
