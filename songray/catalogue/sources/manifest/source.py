"""Files that list tracks or playlists.

Tracks: CSV, JSON lines or Parquet, with the columns id, url and optional metadata. Playlists: the same
formats with the columns playlist, position and track, or the JSON of the Million Playlist Dataset.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Problem, Track
from songray.catalogue.sources.manifest import million
from songray.catalogue.sources.names import SOURCE_NAMES
from songray.catalogue.sources.reading import read_sequentially
from songray.errors import CorruptData, InvalidOption
from songray.library import Row

ROWS_PER_PIECE = 1000
LIST_SEPARATOR = ";"  # between artists or genres in one cell
DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
QUALIFIED_ID = re.compile(rf"({'|'.join(SOURCE_NAMES)}):.")  # any other id belongs to the manifest
PLAYLIST_COLUMNS = {"playlist", "position", "track"}
PRECISIONS = {4: "year", 7: "month", 10: "day"}


@dataclass(frozen=True)
class ManifestSource:
    name: ClassVar[str] = "manifest"
    is_complete: ClassVar[bool] = True
    is_public: ClassVar[bool] = False

    manifest: str | None = None
    """File (.csv, .jsonl or .parquet; path or URI), or a folder of such files.
    Columns of tracks: id and url (or path; or only isrc, where another source has the audio); optionally
    title, artist, album, date, duration, genre, isrc, explicit and recording. Artists or genres in one cell
    are separated by ";". Columns of playlists: playlist, position (from 0) and track, which is an id. A .json
    file is read as one of the Million Playlist Dataset."""

    def pages(self) -> Iterator[Page]:
        if not self.manifest:
            raise InvalidOption(
                "--manifest is empty: name a .csv, .jsonl, .parquet or .json file, or a folder of them"
            )
        filesystem, path = _resolve(self.manifest)
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.NotFound:
            raise InvalidOption(f"--manifest {self.manifest}: there is no such file or folder")
        folder = pa.fs.FileSelector(path, recursive=True)
        infos = [info] if info.is_file else filesystem.get_file_info(folder)
        for file in sorted((file for file in infos if file.is_file), key=lambda file: file.path):
            yield Page(file.path, f"{file.size} bytes, {file.mtime_ns} ns")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_sequentially(pages, self._read_file)

    def _read_file(self, page: Page) -> Iterator[Contents]:
        filesystem, _ = _resolve(str(self.manifest))
        numbered = enumerate(_rows(filesystem, page.name), 1)
        while rows := list(itertools.islice(numbered, ROWS_PER_PIECE)):
            contents = Contents()
            for number, row in rows:
                try:
                    _add(contents, row, posixpath.dirname(page.name))
                except ValueError as error:
                    detail = f"row {number} of {page.name}: {error}"
                    contents.problems.append(Problem("bad_row", detail))
            yield contents


def _resolve(location: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" in location:
        filesystem, path = pa.fs.FileSystem.from_uri(location)
        return filesystem, path
    return pa.fs.LocalFileSystem(), posixpath.abspath(posixpath.expanduser(location))


def _rows(filesystem: pa.fs.FileSystem, path: str) -> Iterator[Row]:
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".parquet":
        with filesystem.open_input_file(path) as file:
            for batch in pa.parquet.ParquetFile(file).iter_batches(ROWS_PER_PIECE):
                yield from batch.to_pylist()
    elif suffix in (".csv", ".jsonl", ".ndjson"):
        with filesystem.open_input_stream(path) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            yield from csv.DictReader(text) if suffix == ".csv" else map(_parse_line, text)
    elif suffix == ".json":
        with filesystem.open_input_stream(path) as stream:
            yield from million.rows(stream, path)
    else:
        raise CorruptData(f"{path}: a manifest ends in .csv, .jsonl, .parquet or .json")


def _parse_line(line: str) -> Row:
    """A line of JSON as a row. A malformed line becomes a row without the required columns, which keeps its
    text for the message."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {"not JSON": line.strip()[:80]}
    return row if isinstance(row, dict) else {"not an object": row}


def _add(contents: Contents, row: Row, folder: str) -> None:
    """Add a row as a track, a playlist entry or both, according to its columns. Raises ValueError."""
    if "track_uri" in row:
        track, artist = million.describe(row)
        contents.tracks.append(track)
        contents.artists.append(artist)
    elif not row.keys() >= PLAYLIST_COLUMNS:
        track, artists = describe(row, folder)
        contents.tracks.append(track)
        contents.artists.extend(artists)
    if row.keys() >= PLAYLIST_COLUMNS:
        contents.playlist_entries.append(_entry(row))


def describe(row: Row, folder: str) -> tuple[Track, list[Artist]]:
    """A row as a track and its artists. Raises ValueError."""
    identity, location = _text(row, "id"), _text(row, "url") or _text(row, "path")
    isrc = _text(row, "isrc")
    if not identity or not (location or isrc):
        raise ValueError(f"needs id and url, or id and isrc, has {dict(itertools.islice(row.items(), 4))}")
    if location and "://" not in location:
        location = posixpath.join(folder, posixpath.expanduser(location))
    names = _texts(row, "artist")
    artists = [Artist(f"manifest:artist:{name.casefold()}", name) for name in names]
    album, date = _text(row, "album"), _date(_text(row, "date"))
    track = Track(
        track_id=_track_id(identity),
        title=_text(row, "title") or identity,
        location=location,
        artist_ids=[artist.artist_id for artist in artists],
        artist_names=names,
        album_id=f"manifest:album:{';'.join(names)}:{album}".casefold() if album else None,
        album=album,
        release_date=date,
        release_date_precision=PRECISIONS[len(date)] if date else None,
        duration_seconds=_seconds(_text(row, "duration")),
        genres=_texts(row, "genre"),
        isrc=isrc,
        explicit=_flag(_text(row, "explicit")),
        recording=_text(row, "recording"),
        audio_version=location or "",
    )
    return track, artists


def _track_id(text: str) -> str:
    """An id that begins with the name of a source as it is, any other as one of the manifest."""
    text = text.replace("spotify:track:", "spotify:", 1)
    return text if QUALIFIED_ID.match(text) else f"manifest:{text}"


def _entry(row: Row) -> PlaylistEntry:
    playlist, position, track = (_text(row, column) for column in ("playlist", "position", "track"))
    identity = _text(row, "playlist_id") or playlist
    if not identity or not track:
        raise ValueError(f"needs playlist, position and track, has {dict(itertools.islice(row.items(), 4))}")
    if not position or not re.fullmatch(r"\d{1,9}", position):
        raise ValueError(f"position {position!r} in playlist {identity} is not an integer from 0")
    return PlaylistEntry(
        f"manifest:playlist:{identity}", playlist or identity, int(position), _track_id(track)
    )


def _text(row: Row, column: str) -> str | None:
    value = row.get(column)
    return str(value).strip() or None if value is not None else None


def _texts(row: Row, column: str) -> list[str]:
    value = row.get(column)
    values = value if isinstance(value, list) else (_text(row, column) or "").split(LIST_SEPARATOR)
    return list(dict.fromkeys(str(item).strip() for item in values if str(item).strip()))


def _date(text: str | None) -> str | None:
    if text is None:
        return None
    if match := DATE.match(text):
        return match[0]
    raise ValueError(f"date {text!r} is not like 1987, 1987-06 or 1987-06-30")


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"duration {text!r} is not a number of seconds")
    return seconds


def _flag(text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ValueError(f"explicit {text!r} is not true or false")
