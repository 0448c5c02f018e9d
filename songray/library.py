"""The map: every table of a library, its columns, its key and the job that fills it.

A library is a folder, local or in object storage. Tables are Parquet files that any tool can read.

    tracks/                     one row a song, as its catalogue describes it
    artists/  playlists/        what the same catalogue says of artists and playlists
    pages/  crawls/             the parts of catalogues that have been read, and the crawls that ended
    removed/                    tracks that were taken out, and stay out
    previews/                   one row a track: its audio, or why there is none
    spectrograms/<set>/         one row a track, one column a spec
    factors/<method>/           one row a track that playlists hold: what its listeners' taste says of it
    runs/<run>/                 a trained model: run.json, model.safetensors, loss curve, checkpoints
    embeddings/<run>/           one vector a track
    indexes/<run>/<version>/    a searchable index: manifest.json, which names its shards; reference.npy
    indexes/<run>/shards/       what versions share: graph.hnsw, vectors.npy, tracks.arrow, names.sqlite
    _checkpoints/               which rows of which table are finished (written by Ray Data)

Every table carries `track_key`, which stands for a track at one revision: the upper 55 bits are a
hash of the track id, the lower 8 its revision. So the newest revision of a track is its largest key.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
from numpy.typing import NDArray

DEFAULT_LIBRARY = "~/songray-library"
REVISION_BITS = 8
Keys = NDArray[np.int64]
Vectors = NDArray[np.float32]  # (rows, dimension)
Row = dict[str, Any]

_STRINGS = pa.list_(pa.string())


@dataclass(frozen=True)
class TableKind:
    """What all tables of one name share. `key` is unique; where `newest` names a column, rows that
    repeat a key are superseded by the one that has the largest value there."""

    job: str
    key: tuple[str, ...]
    columns: dict[str, pa.DataType]
    newest: str | None = None


TABLES = {
    "tracks": TableKind(
        job="crawl",
        key=("track_key",),
        newest="crawl",
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
            "location": pa.string(),  # of the audio: URL, path, or "<source>:<id>", to be resolved there
            "audio_checksum": pa.int64(),  # upper half of the id, lower of the sound's version
            "checksum": pa.int64(),  # of all that the catalogue said
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
    "playlists": TableKind(
        job="crawl",
        key=("playlist_id", "position"),
        newest="crawl",
        columns={
            "playlist_id": pa.string(),
            "playlist": pa.string(),
            "position": pa.int32(),
            "crawl": pa.int64(),
            "version": pa.string(),  # all entries of the playlist as it is now share the newest one
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
            "problems": _STRINGS,  # items of the page that could not be read
            "links": pa.list_(  # to pages that no page read before it led to so soon
                pa.struct({"name": pa.string(), "fingerprint": pa.string(), "step": pa.int32()})
            ),
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
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "audio": pa.large_binary(),  # the file's bytes; null where `location` is a local file
            "location": pa.string(),  # where the audio was found
            "audio_id": pa.string(),  # the track, of another source as may be, whose audio it is
            "size_bytes": pa.int64(),
            "sha256": pa.binary(32),  # of `audio`
            "status": pa.int32(),  # of HTTP
            "attempts": pa.int32(),
            "seconds": pa.float64(),  # spent on it, all attempts together
            "error": pa.string(),  # class of what failed for good, else null
            "detail": pa.string(),
        },
    ),
    "spectrograms": TableKind(
        job="transform",
        key=("track_key",),
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            # Of each spec that the set was made with: uint8, frames × bins, see songray/spectrograms.py
            "mel128": pa.binary(),
            "linear257": pa.binary(),
            "mel128-8k": pa.binary(),
            "mel96": pa.binary(),
            "mfcc20-8k": pa.binary(),
            "chroma12": pa.binary(),
            "seconds": pa.float64(),  # of audio behind the spectrograms
            "missing_seconds": pa.float64(),  # of audio that the file announces and does not hold
            "error": pa.string(),
            "detail": pa.string(),
        },
    ),
    "factors": TableKind(
        job="factorize",
        key=("version", "track_key"),  # of one version together, or they cannot be compared
        columns={
            "version": pa.int64(),
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "playlists": pa.int64(),  # checksum of what it was made from
            "factors": pa.list_(pa.float32()),  # of one fixed size
        },
    ),
    "embeddings": TableKind(
        job="embed",
        key=("track_key",),
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "embedding": pa.list_(pa.float32()),  # of the run's fixed size, length 1
        },
    ),
}


@dataclass(frozen=True)
class Table:
    """One table in storage."""

    filesystem: pa.fs.FileSystem
    root: str
    name: str  # "previews", "embeddings/cae-1a2b3c4d"

    @property
    def kind(self) -> TableKind:
        return TABLES[self.name.split("/")[0]]

    @property
    def path(self) -> str:
        return posixpath.join(self.root, self.name)

    @property
    def checkpoint_path(self) -> str:
        return posixpath.join(self.root, "_checkpoints", self.name)

    def schema(self, **columns: pa.DataType) -> pa.Schema:
        """The declared schema, with the types of `columns` made more precise."""
        return pa.schema({**self.kind.columns, **columns})

    def files(self) -> list[str]:
        """Paths of the finished data files, oldest crawl first.

        Ray Data notes each file as pending before it writes it: a file whose note is still pending
        is being written, or was cut off and will be deleted by the next run of the job.
        """
        pending = [
            posixpath.basename(path).removesuffix(".pending.parquet")
            for path in self._list(self.checkpoint_path)
            if path.endswith(".pending.parquet")
        ]
        unfinished = tuple(pending)
        return [
            path
            for path in self._list(self.path)
            if path.endswith(".parquet") and not posixpath.basename(path).startswith(unfinished)
        ]

    def finished_keys(self) -> Keys:
        """Sorted keys of the rows whose write was committed."""
        committed = [path for path in self._list(self.checkpoint_path) if ".pending." not in path]
        column = self.read(["track_key"], files=committed).column("track_key")
        return np.sort(column.to_numpy())

    def read(
        self,
        columns: Sequence[str] | None = None,
        where: pa.dataset.Expression | None = None,
        files: Sequence[str] | None = None,
    ) -> pa.Table:
        """The finished rows, in the order of files; an absent table reads as an empty one."""
        paths = self.files() if files is None else list(files)
        if not paths:
            schema = self.schema()
            return schema.empty_table().select(columns or schema.names)
        dataset = pa.dataset.dataset(paths, filesystem=self.filesystem, format="parquet")
        return dataset.to_table(columns=list(columns) if columns else None, filter=where)

    def scan(self, columns: Sequence[str], files: Sequence[str]) -> Iterator[pa.dataset.TaggedRecordBatch]:
        """The rows of some files in pieces, each with the file that it comes from."""
        if files:
            dataset = pa.dataset.dataset(list(files), filesystem=self.filesystem, format="parquet")
            yield from dataset.scanner(columns=list(columns)).scan_batches()

    def newest(self, columns: Sequence[str]) -> pa.Table:
        """One row a track: its newest revision, as newest described. Memory: the columns asked for."""
        order = [column for column in ("track_key", self.kind.newest) if column]
        names = list(dict.fromkeys([*columns, *order]))
        rows = self.read(names).sort_by([(column, "ascending") for column in order])
        tracks = rows.column("track_key").to_numpy() >> REVISION_BITS
        return rows.filter(pa.array(last_of_equal(tracks))).select(list(columns))

    def append(self, rows: pa.Table, name: str) -> str:
        """Add one file, whole or not at all; its path. Files are read in the order of their names."""
        self.filesystem.create_dir(self.path, recursive=True)
        path = posixpath.join(self.path, f"{name}-{uuid.uuid4().hex[:8]}.parquet")
        write_parquet(self.filesystem, path, rows)
        return path

    def delete(self, files: Sequence[str]) -> None:
        for path in files:
            self.filesystem.delete_file(path)

    def claim(self, made_by: dict[str, Any]) -> None:
        """Note what makes this table's rows; refuse to add rows that something else makes."""
        path = posixpath.join(self.path, "_made_by.json")
        before = read_json(self.filesystem, path)
        if before is None:
            write_json(self.filesystem, path, made_by)
        elif before != json.loads(json.dumps(made_by)):
            raise ValueError(
                f"{self.name} was made by {json.dumps(before)}, and this would add rows made by "
                f"{json.dumps(made_by)}: choose another name for it, or the same settings"
            )

    def _list(self, folder: str) -> list[str]:
        selector = pa.fs.FileSelector(folder, allow_not_found=True)
        return sorted(info.path for info in self.filesystem.get_file_info(selector) if info.is_file)


@dataclass(frozen=True)
class Library:
    """A filesystem and an absolute path in it; travels to workers by pickle."""

    filesystem: pa.fs.FileSystem
    root: str

    @classmethod
    def open(cls, location: str) -> Library:
        """`location` is a local path, or a URI that pyarrow opens (s3://…, gs://…)."""
        if "://" in location:
            filesystem, path = pa.fs.FileSystem.from_uri(location)
            return cls(filesystem, path)
        path = os.path.abspath(os.path.expanduser(location))
        os.makedirs(path, exist_ok=True)
        return cls(pa.fs.LocalFileSystem(), path)

    def table(self, *name: str) -> Table:
        return Table(self.filesystem, self.root, "/".join(name))

    def tables(self) -> Iterator[Table]:
        """All that hold rows."""
        for name in TABLES:
            tables = [self.table(name), *(self.table(name, part) for part in self.folders(name))]
            yield from (table for table in tables if table.files())

    def path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def folders(self, *parts: str) -> list[str]:
        """Names of the folders below a folder, sorted."""
        selector = pa.fs.FileSelector(self.path(*parts), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pa.fs.FileType.Directory)


def read_json(filesystem: pa.fs.FileSystem, path: str) -> Any:
    """The parsed file, or None where there is none."""
    if filesystem.get_file_info(path).type == pa.fs.FileType.NotFound:
        return None
    with filesystem.open_input_stream(path) as stream:
        return json.loads(stream.read())


def write_json(filesystem: pa.fs.FileSystem, path: str, content: Any) -> None:
    """Write the file whole or not at all."""
    filesystem.create_dir(posixpath.dirname(path), recursive=True)
    with filesystem.open_output_stream(f"{path}.part") as stream:
        stream.write(json.dumps(content, indent=2).encode())
    filesystem.move(f"{path}.part", path)


def write_parquet(
    filesystem: pa.fs.FileSystem, path: str, rows: pa.Table, row_group_rows: int | None = None
) -> None:
    """Write the file whole or not at all."""
    how = compression(rows.schema)
    pa.parquet.write_table(rows, f"{path}.part", row_group_rows, filesystem=filesystem, compression=how)
    filesystem.move(f"{path}.part", path)


def compression(schema: pa.Schema) -> str | dict[str, str]:
    """For Parquet: audio, which alone is large_binary, comes compressed."""
    if not any(pa.types.is_large_binary(column.type) for column in schema):
        return "zstd"
    return {column.name: "none" if pa.types.is_large_binary(column.type) else "zstd" for column in schema}


def hash64(*parts: str) -> int:
    """A signed 64-bit hash, the same on every machine and in every run."""
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def sample_rank(*parts: str) -> float:
    """A number in 0…1 that the parts draw: the same on every machine and in every run."""
    return (hash64(*parts) >> 11) / 2**53 % 1.0


def track_key(track_id: str, revision: int) -> int:
    """The key of a track at one revision: 55 bits of hash, 8 of revision; never negative."""
    if not 0 <= revision < 1 << REVISION_BITS:
        raise ValueError(f"{track_id} has had {revision} revisions; {1 << REVISION_BITS} are the most")
    return (hash64(track_id) & (1 << 55) - 1) << REVISION_BITS | revision


def newest_revisions(keys: Keys) -> Keys:
    """Of sorted keys, those that are the newest revision of their track; sorted."""
    newest: Keys = keys[last_of_equal(keys >> REVISION_BITS)]
    return newest


def last_of_equal(values: Keys) -> NDArray[np.bool_]:
    """For each of some sorted values, whether it is the last of those that equal it."""
    return np.append(values[1:] != values[:-1], True)[: values.size]


def matrix(column: pa.ChunkedArray) -> Vectors:
    """A column of vectors, as it is stored, as one array, (tracks, dimension)."""
    if not len(column):
        return np.empty((0, 0), np.float32)
    flat: Vectors = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(column), -1)
