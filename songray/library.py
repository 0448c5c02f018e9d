"""A library: what it contains, and where. The columns of its tables are in songray/tables.py.

A library is a folder, local or in object storage. Tables are Parquet files that any tool can read.

    tracks/                     one row a song, as its catalogue describes it
    artists/  playlists/        artists and playlists of the same catalogues
    related_artists/            pairs of artists that a catalogue calls related
    pages/  crawls/             the pages of catalogues that have been read, and the crawls that are finished
    removed/                    tracks that were removed, and that later crawls skip
    previews/                   one row a track: its audio, or why there is none
    spectrograms/<set>/         one row a track, one column a spec
    factors/<method>/           one row a track that playlists hold: its collaborative factors
    runs/<run>/                 a trained model, or the weights of runs that are joined: run.json,
                                model.safetensors, loss curve, checkpoints
    embeddings/<run>/           one vector a track
    maps/<run>/<method>/        the position of each track on a map
    indexes/<run>/<version>/    a searchable index: manifest.json, which names its shards; reference.npy
    indexes/<run>/shards/       shared by versions: graph.hnsw, vectors.npy, tracks.arrow, names.sqlite
    judgements/                 answers of listeners who compared two runs on the page
    _checkpoints/               which rows of which table are finished (songray/checkpoints.py)
    _keys/                      which file has the rows of each track (songray/key_index.py)
    _leases/                    which process writes what (songray/leases.py)

Every table of tracks carries `track_key`, an int64 for a track at one revision: see songray/keys.py.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

from songray import leases
from songray.errors import InvalidOption
from songray.storage import storage_errors
from songray.table import Table
from songray.tables import TABLES

DEFAULT_LIBRARY = "~/songray-library"
Vectors = NDArray[np.float32]  # (rows, dimension)
Row = dict[str, Any]


@dataclass(frozen=True)
class Library:
    """A filesystem and an absolute path in it; travels to workers by pickle."""

    filesystem: pa.fs.FileSystem
    root: str
    take_over: bool = False  # whether its leases are taken from the processes that hold them

    @classmethod
    def open(cls, location: str) -> Library:
        """`location` is a local path, or a URI that pyarrow opens (s3://…, gs://…).

        Raises InvalidOption for a URI that it does not open, StorageError where the folder cannot be created.
        """
        if "://" in location:
            try:
                filesystem, path = pa.fs.FileSystem.from_uri(location)
            except (pa.ArrowException, ValueError, OSError) as error:
                raise InvalidOption(f"--library {location}: {error}") from error
            return cls(filesystem, path)
        path = os.path.abspath(os.path.expanduser(location))
        with storage_errors(path):
            os.makedirs(path, exist_ok=True)
        return cls(pa.fs.LocalFileSystem(), path)

    def table(self, *name: str) -> Table:
        return Table(self.filesystem, self.root, "/".join(name), TABLES[name[0].split("/")[0]])

    def tables(self) -> Iterator[Table]:
        """All tables that hold rows."""
        for kind in TABLES:
            yield from (table for name in self.names(kind) if (table := self.table(name)).files())

    def names(self, kind: str) -> list[str]:
        """The names of the tables of a kind that have a folder, such as embeddings/<run>, sorted."""
        names = [kind]
        for _ in range(TABLES[kind].folders):
            names = [f"{name}/{part}" for name in names for part in self.folders(name)]
        return names

    def lease(self, name: str) -> AbstractContextManager[leases.Lease]:
        """The right to write a table ("tracks", "embeddings/<run>"), a run ("runs/<run>") or an index
        ("indexes/<run>"), as a context. Raises Conflict where another process holds it."""
        return leases.hold(self.filesystem, self.root, name, self.take_over)

    def path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def folders(self, *parts: str) -> list[str]:
        """Names of the folders below a folder, sorted."""
        with storage_errors(self.path(*parts)):
            selector = pa.fs.FileSelector(self.path(*parts), allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pa.fs.FileType.Directory)


def matrix(column: pa.ChunkedArray) -> Vectors:
    """A column of stored vectors as one array, (tracks, dimension)."""
    if not len(column):
        return np.empty((0, 0), np.float32)
    flat: Vectors = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(column), -1)


def tag_matrix(tags: pa.ChunkedArray, count: int) -> Vectors:
    """A column of tags as one array, (tracks, count), NaN where they are unknown."""
    values = np.full((len(tags), count), np.nan, np.float32)
    if count and tags.null_count < len(tags):
        is_known = tags.is_valid().to_numpy()
        values[is_known] = tags.combine_chunks().flatten().to_numpy().reshape(-1, count)
    return values
