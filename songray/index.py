"""Reads embeddings and tracks, writes an index: vectors to search by hnswlib, tracks to show from SQLite.

indexes/<run>/<version>/vectors.hnsw    cosine space; a label is a row of tracks.sqlite
indexes/<run>/<version>/tracks.sqlite   what answers show, with full-text search of title and artist
indexes/<run>/<version>/manifest.json   parameters and checksums; written last: no index without it
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
from numpy.typing import NDArray

from songray import runs
from songray.embeddings import matrix
from songray.library import REVISION_BITS, TABLES, Library, read_json, write_json
from songray.runs import Vectors

INTERNAL = {"track_key", "revision", "crawl", "audio_checksum", "checksum"}
SHOWN = [name for name in TABLES["tracks"].columns if name not in INTERNAL]
VECTORS, TRACKS = "vectors.hnsw", "tracks.sqlite"

Row = dict[str, Any]


@dataclass(frozen=True)
class IndexConfig:
    run: str = ""
    """Run whose embeddings are indexed; may be left out where there is only one."""
    links: int = 16
    """Links a vector (hnswlib's M): more find better and take more memory."""
    ef_construction: int = 200
    """Candidates that are compared while a vector is linked: more find better and build slower."""

    def __post_init__(self) -> None:
        for name, least in (("links", 2), ("ef_construction", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class Manifest:
    """What an index is made of."""

    run: str
    version: str
    tracks: int
    dimension: int
    data: str  # fingerprint of vectors and tracks
    parameters: dict[str, int]  # of hnswlib
    made_with: dict[str, str]
    checksums: dict[str, str]  # SHA-256 a file


@dataclass(frozen=True)
class IndexSummary:
    manifest: Manifest
    new: bool  # or kept, as nothing has changed

    def __str__(self) -> str:
        manifest = self.manifest
        verb = "wrote" if self.new else "nothing has changed: kept"
        return f"index {manifest.run}: {verb} version {manifest.version}, {manifest.tracks} tracks"


def index(library: Library, config: IndexConfig) -> IndexSummary:
    """Index the embeddings of a run as a new version, unless the newest version is of the same."""
    summary: IndexSummary = ray.get(ray.remote(build).remote(library, config))
    return summary


def build(library: Library, config: IndexConfig) -> IndexSummary:
    """As `index`, in this process. Memory: the vectors three times, and the rows of their tracks."""
    run = runs.choose(library, config.run).name
    vectors, tracks = _joined(library, run)
    if not tracks.num_rows:
        raise ValueError(f"embeddings/{run} is empty: run jobs/embed.py first")
    parameters = {"M": config.links, "ef_construction": config.ef_construction}
    data = _fingerprint(vectors, tracks)
    newest = newest_manifest(library, run)
    if newest and (newest.data, newest.parameters) == (data, parameters):
        return IndexSummary(newest, new=False)
    manifest = Manifest(
        run=run,
        version=f"{int(newest.version) + 1 if newest else 1:06d}",
        tracks=len(vectors),
        dimension=vectors.shape[1],
        data=data,
        parameters=parameters,
        made_with=runs.made_with(),
        checksums={},
    )
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder, VECTORS), vectors, parameters)
        write_tracks(Path(folder, TRACKS), tracks.to_pylist())
        return IndexSummary(_publish(library, manifest, folder), new=True)


def _joined(library: Library, run: str) -> tuple[Vectors, pa.Table]:
    """Vectors and rows of the tracks that have both, in one order."""
    embeddings = library.table("embeddings", run).newest(["track_key", "embedding"])
    tracks = library.table("tracks").newest(["track_key", *SHOWN])
    embedded, known = (table["track_key"].to_numpy() >> REVISION_BITS for table in (embeddings, tracks))
    _, of_embeddings, of_tracks = np.intersect1d(embedded, known, assume_unique=True, return_indices=True)
    return matrix(embeddings["embedding"].take(pa.array(of_embeddings))), tracks.take(pa.array(of_tracks))


def _fingerprint(vectors: Vectors, tracks: pa.Table) -> str:
    digest = hashlib.sha256(vectors.tobytes())
    for row in tracks.to_pylist():
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def write_vectors(path: Path, vectors: Vectors, parameters: dict[str, int]) -> None:
    """Link the vectors, (tracks, dimension), labelled by their row."""
    graph = hnswlib.Index(space="cosine", dim=vectors.shape[1])
    graph.init_index(max_elements=len(vectors), random_seed=0, **parameters)
    graph.add_items(vectors, np.arange(len(vectors)))
    graph.save_index(str(path))


def write_tracks(path: Path, tracks: list[Row]) -> None:
    """Store the rows, numbered from 0, and make title and artist searchable."""
    database = sqlite3.connect(path)
    with database:
        database.execute("CREATE TABLE tracks (label INTEGER PRIMARY KEY, track_id TEXT UNIQUE, row TEXT)")
        database.execute(
            "CREATE VIRTUAL TABLE names USING fts5(title, artist, content='', "
            "tokenize='unicode61 remove_diacritics 2')"
        )
        for label, row in enumerate(tracks):
            shown = {name: row[name] for name in SHOWN}
            database.execute(
                "INSERT INTO tracks VALUES (?, ?, ?)", (label, row["track_id"], json.dumps(shown))
            )
            names = (label, row["title"], ", ".join(row["artist_names"]))
            database.execute("INSERT INTO names (rowid, title, artist) VALUES (?, ?, ?)", names)
    database.close()


def _publish(library: Library, manifest: Manifest, folder: str) -> Manifest:
    """Copy the files of a new version into the library, and its manifest last."""
    target = library.path("indexes", manifest.run, manifest.version)
    if library.filesystem.get_file_info(target).type != pa.fs.FileType.NotFound:
        library.filesystem.delete_dir(target)  # left without manifest by a build that was cut off
    library.filesystem.create_dir(target, recursive=True)
    pa.fs.copy_files(folder, target, pa.fs.LocalFileSystem(), library.filesystem)
    checksums = {name: _sha256(Path(folder, name)) for name in (VECTORS, TRACKS)}
    finished = replace(manifest, checksums=checksums)
    write_json(library.filesystem, f"{target}/manifest.json", asdict(finished))
    return finished


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_manifest(library: Library, run: str) -> Manifest | None:
    """Of the newest finished version of a run's index, if there is one."""
    for version in reversed(library.folders("indexes", run)):
        content = read_json(library.filesystem, library.path("indexes", run, version, "manifest.json"))
        if content:
            return Manifest(**content)
    return None


class Index:
    """An index in memory, read-only."""

    def __init__(self, library: Library, manifest: Manifest) -> None:
        """Load and verify; raises ValueError where a file is not what the manifest says."""
        self.manifest = manifest
        self._folder = tempfile.TemporaryDirectory(prefix="songray-index-")
        source = library.path("indexes", manifest.run, manifest.version)
        pa.fs.copy_files(source, self._folder.name, library.filesystem, pa.fs.LocalFileSystem())
        for name, checksum in manifest.checksums.items():
            if _sha256(Path(self._folder.name, name)) != checksum:
                raise ValueError(f"{source}/{name} is damaged (checksum): run jobs/index.py again")
        self._graph = hnswlib.Index(space="cosine", dim=manifest.dimension)
        self._graph.load_index(str(Path(self._folder.name, VECTORS)))
        tracks = Path(self._folder.name, TRACKS)
        self._database = sqlite3.connect(f"file:{tracks}?immutable=1", uri=True, check_same_thread=False)

    def __len__(self) -> int:
        return self.manifest.tracks

    def label(self, track_id: str) -> int | None:
        """The number of a track, or None where it is not in the index."""
        found = self._database.execute("SELECT label FROM tracks WHERE track_id = ?", (track_id,)).fetchone()
        return int(found[0]) if found else None

    def track(self, label: int) -> Row:
        """What the catalogue says of a track."""
        (text,) = self._database.execute("SELECT row FROM tracks WHERE label = ?", (label,)).fetchone()
        row: Row = json.loads(text)
        return row

    def vector(self, label: int) -> Vectors:
        """(dimension,), of length 1"""
        vector: Vectors = np.array(self._graph.get_items([label])[0], np.float32)
        return vector

    def search(self, text: str, limit: int) -> list[int]:
        """Labels of the tracks whose title or artist hold words that begin so, best match first."""
        words = re.findall(r"\w+", text)
        if not words:
            return list(range(min(limit, len(self))))
        query = " ".join(f'"{word}"*' for word in words)
        sql = "SELECT rowid FROM names WHERE names MATCH ? ORDER BY rank, rowid LIMIT ?"
        return [label for (label,) in self._database.execute(sql, (query, limit))]

    def nearest(self, vector: Vectors, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels and cosines of the k nearest vectors (or all there are), nearest first."""
        k = min(k, len(self))
        self._graph.set_ef(max(64, 2 * k))
        labels, distances = self._graph.knn_query(vector[None], k=k, num_threads=1)
        return labels[0].astype(np.int64), 1 - distances[0]
