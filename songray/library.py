"""The map: every table of a library, its columns, its key and the job that fills it.

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
from songray.table import Table, TableKind

DEFAULT_LIBRARY = "~/songray-library"
Vectors = NDArray[np.float32]  # (rows, dimension)
Row = dict[str, Any]

_STRINGS = pa.list_(pa.string())

TABLES = {
    "tracks": TableKind(
        job="crawl",
        key=("track_key",),
        newest="crawl",
        indexed=("crawl", "is_gone", "id_hash", "completeness", "audio_checksum", "checksum"),
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),  # "<source>:<id within the source>"
            "revision": pa.int32(),
            "crawl": pa.int64(),  # number of the crawl that wrote the row
            "source": pa.string(),
            "title": pa.string(),
            "artist_ids": _STRINGS,
            "artist_names": _STRINGS,
            "album_id": pa.string(),
            "album": pa.string(),
            "release_date": pa.string(),
            "release_date_precision": pa.string(),  # year, month or day
            "duration_seconds": pa.float64(),
            "genres": _STRINGS,
            "isrc": pa.string(),
            "explicit": pa.bool_(),
            "recording": pa.string(),  # groups ids that are one recording
            "tempo_bpm": pa.float64(),
            "key": pa.string(),  # pitch class of the tonic: C, C#, D, … B
            "mode": pa.string(),  # major or minor
            "license": pa.string(),  # its name or its URL
            "location": pa.string(),  # of the audio: URL, path, or "<source>:<id>", which that source locates
            "is_gone": pa.bool_(),  # its file is no longer in its folder, so it is not indexed
            "id_hash": pa.int64(),  # a second hash of the id: two ids with one number differ in it
            "completeness": pa.int32(),  # number of fields that the catalogue fills
            "audio_checksum": pa.int64(),  # of the version of the sound, 32 bits
            "checksum": pa.int64(),  # of all fields that the catalogue fills, the lower 5 bits zero
        },
    ),
    "artists": TableKind(
        job="crawl",
        key=("artist_id",),
        newest="crawl",
        columns={
            "artist_id": pa.string(),
            "crawl": pa.int64(),
            "name": pa.string(),
            "genres": _STRINGS,
        },
    ),
    "related_artists": TableKind(
        job="crawl",
        key=("artist_id", "related_id"),
        newest="crawl",
        columns={"artist_id": pa.string(), "related_id": pa.string(), "crawl": pa.int64()},
    ),
    "playlists": TableKind(
        job="crawl",
        key=("playlist_id", "position"),
        newest="crawl",
        columns={
            "playlist_id": pa.string(),
            "playlist": pa.string(),
            "position": pa.int32(),
            "crawl": pa.int64(),
            "version": pa.string(),  # shared by all entries of the playlist at one time
            "track_id": pa.string(),
        },
    ),
    "pages": TableKind(
        job="crawl",
        key=("source", "page"),
        newest="crawl",
        columns={
            "source": pa.string(),
            "page": pa.string(),
            "fingerprint": pa.string(),
            "crawl": pa.int64(),
            "page_problems": pa.list_(
                pa.struct({"kind": pa.string(), "detail": pa.string()})
            ),  # unreadable items
            "links": pa.list_(  # to pages that this page reaches in fewer steps than the pages before it
                pa.struct({"name": pa.string(), "fingerprint": pa.string(), "step": pa.int32()})
            ),
            "track_ids": _STRINGS,  # of the tracks on it, where its source lists all of its pages
        },
    ),
    "crawls": TableKind(
        job="crawl",
        key=("crawl",),
        columns={"crawl": pa.int64(), "source": pa.string(), "options": pa.string()},  # options as JSON
    ),
    "removed": TableKind(
        job="remove",
        key=("track_id",),
        columns={"track_id": pa.string(), "reason": pa.string(), "removed_at": pa.timestamp("s", "UTC")},
    ),
    "previews": TableKind(
        job="download",
        key=("track_key",),
        indexed=("error",),
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "audio": pa.large_binary(),  # the file's bytes; null where `location` is a local file
            "location": pa.string(),  # URL that the audio was downloaded from, or path of a local file
            "audio_id": pa.string(),  # the track whose audio it is, where that is a track of another source
            "size_bytes": pa.int64(),
            "sha256": pa.binary(32),  # of `audio`
            "status": pa.int32(),  # of HTTP
            "attempts": pa.int32(),
            "seconds": pa.float64(),  # that all attempts together took
            "error": pa.string(),  # class of a permanent failure, else null
            "detail": pa.string(),
        },
    ),
    "spectrograms": TableKind(
        job="transform",
        key=("track_key",),
        indexed=("error",),
        folders=1,
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            # One column for each spec of the set: uint8, frames × bins, see songray/audio/spectrograms.py
            "mel128": pa.binary(),
            "linear257": pa.binary(),
            "mel128-8k": pa.binary(),
            "mel96": pa.binary(),
            "mfcc20-8k": pa.binary(),
            "chroma12": pa.binary(),
            "mel96-16k": pa.binary(),
            "seconds": pa.float64(),  # of decoded audio
            "missing_seconds": pa.float64(),  # of audio that the file announces and does not contain
            "error": pa.string(),
            "detail": pa.string(),
        },
    ),
    "factors": TableKind(
        job="factorize",
        key=("version", "track_key"),  # factors of different versions cannot be compared
        folders=1,
        columns={
            "version": pa.int64(),
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "playlists": pa.int64(),  # checksum of the playlists that were factorised
            "factors": pa.list_(pa.float32()),  # fixed size
        },
    ),
    "embeddings": TableKind(
        job="embed",
        key=("track_key",),
        indexed=(),
        folders=1,
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "embedding": pa.list_(pa.float32()),  # unit vector, fixed size
            "tags": pa.list_(pa.float16()),  # probabilities of the run's tags, in their order; or null
        },
    ),
    "maps": TableKind(
        job="project",
        key=("track_key",),
        indexed=(),
        folders=2,
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "x": pa.float32(),
            "y": pa.float32(),
            "cluster": pa.int16(),
        },
    ),
}


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
