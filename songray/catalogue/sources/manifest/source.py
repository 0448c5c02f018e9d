"""Lists of songs and of playlists in files.

Songs: CSV, JSON lines or Parquet, with id, url and whatever else is known. Playlists: the same formats
with the columns playlist, position and track, or the JSON of the Million Playlist Dataset.
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
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Track, read_in_turn
from songray.catalogue.sources.manifest import million

ROWS_AT_ONCE = 1000
LIST_SEPARATOR = ";"  # between several artists or genres in one cell
DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
WHOLE_ID = re.compile(
    r"(deezer|folder|itunes|manifest|spotify|synthetic):."
)  # any other is the manifest's own
PLAYLIST_COLUMNS = {"playlist", "position", "track"}
PRECISIONS = {4: "year", 7: "month", 10: "day"}

Row = dict[str, Any]


@dataclass(frozen=True)
class ManifestSource:
    name: ClassVar[str] = "manifest"
    tells_all: ClassVar[bool] = True

    manifest: str | None = None
    """File (.csv, .jsonl or .parquet; path or URI), or a folder of such files.
    Columns: id, url (or path; or only isrc, where another source has the audio); where known title, artist,
    album, date, duration, genre, isrc, explicit, recording. Several artists or genres in a cell stand with
    ";" between them. Playlists: columns playlist, position (from 0) and track, which is an id; or a .json
    file of the Million Playlist Dataset."""

    def pages(self) -> Iterator[Page]:
        if not self.manifest:
            raise ValueError(
                "--manifest is empty: name a .csv, .jsonl, .parquet or .json file, or a folder of them"
            )
        filesystem, path = _resolve(self.manifest)
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.NotFound:
            raise ValueError(f"--manifest {self.manifest}: there is no such file or folder")
        folder = pa.fs.FileSelector(path, recursive=True)
        infos = [info] if info.is_file else filesystem.get_file_info(folder)
        for file in sorted((file for file in infos if file.is_file), key=lambda file: file.path):
            yield Page(file.path, f"{file.size} bytes, {file.mtime_ns} ns")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_in_turn(pages, self._read_file)

    def _read_file(self, page: Page) -> Iterator[Contents]:
        filesystem, _ = _resolve(str(self.manifest))
        numbered = enumerate(_rows(filesystem, page.name), 1)
        while chunk := list(itertools.islice(numbered, ROWS_AT_ONCE)):
            contents = Contents()
            for number, row in chunk:
                try:
                    _add(contents, row, posixpath.dirname(page.name))
                except ValueError as error:
                    contents.problems.append(f"bad_row: row {number} of {page.name}: {error}")
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
            for batch in pa.parquet.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
    elif suffix in (".csv", ".jsonl", ".ndjson"):
        with filesystem.open_input_stream(path) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            yield from csv.DictReader(text) if suffix == ".csv" else map(_parse_line, text)
    elif suffix == ".json":
        with filesystem.open_input_stream(path) as stream:
            yield from million.rows(stream, path)
    else:
        raise ValueError(f"{path}: a manifest ends in .csv, .jsonl, .parquet or .json")


def _parse_line(line: str) -> Row:
    """A line of JSON as a row; one that is none keeps its text, for the message about it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {"not JSON": line.strip()[:80]}
    return row if isinstance(row, dict) else {"not an object": row}


def _add(contents: Contents, row: Row, folder: str) -> None:
    """Take a row for what its columns say that it is; raises ValueError on a bad one."""
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
    """A row as a track and its artists; raises ValueError on what cannot be one."""
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
    """The id of a track: of another source where it names that, else the manifest's own."""
    text = text.replace("spotify:track:", "spotify:", 1)
    return text if WHOLE_ID.match(text) else f"manifest:{text}"


def _entry(row: Row) -> PlaylistEntry:
    playlist, position, track = (_text(row, column) for column in ("playlist", "position", "track"))
    identity = _text(row, "playlist_id") or playlist
    if not identity or not track:
        raise ValueError(f"needs playlist, position and track, has {dict(itertools.islice(row.items(), 4))}")
    if not position or not re.fullmatch(r"\d{1,9}", position):
        raise ValueError(f"position {position!r} in playlist {identity} is not a whole number from 0")
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
