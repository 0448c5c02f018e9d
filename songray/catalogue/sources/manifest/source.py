"""Files that list tracks or playlists.

Tracks: CSV, JSON lines or Parquet, with the columns id, url and optional metadata. Playlists: the same
formats with the columns playlist, position and track, or the JSON of the Million Playlist Dataset.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.fs

from songray.catalogue.sources.base import Artist, Contents, Page, PlaylistEntry, Problem, Track
from songray.catalogue.sources.manifest import million
from songray.catalogue.sources.manifest.rows import ROWS_PER_PIECE, rows
from songray.catalogue.sources.names import SOURCE_NAMES
from songray.catalogue.sources.reading import read_sequentially, unusable_page
from songray.catalogue.sources.tonality import tempo, tonality
from songray.errors import InvalidOption
from songray.library import Row

LIST_SEPARATOR = ";"  # between artists or genres in one cell
DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
QUALIFIED_ID = re.compile(rf"({'|'.join(SOURCE_NAMES)}):.")  # any other id belongs to the manifest
PLAYLIST_COLUMNS = {"playlist", "position", "track"}
MALFORMED = (ValueError, OverflowError, RecursionError)  # raised by reading a row
PRECISIONS = {4: "year", 7: "month", 10: "day"}


@dataclass(frozen=True)
class ManifestSource:
    name: ClassVar[str] = "manifest"
    is_complete: ClassVar[bool] = True
    is_public: ClassVar[bool] = False

    manifest: str | None = None
    """File (.csv, .jsonl or .parquet; path or URI), or a folder of such files.
    Columns of tracks: id and url (or path; or only isrc, where another source has the audio); optionally
    title, artist, album, date, duration, genre, isrc, explicit, recording, tempo (beats a minute), key (such
    as F# minor), mode and license. Artists or genres in one cell are separated by ";". Columns of playlists:
    playlist, position (from 0) and track, which is an id. A .json file is read as one of the Million Playlist
    Dataset."""

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
        pages = [_page(file, path, number) for number, file in enumerate(infos) if file.is_file]
        yield from sorted(pages, key=lambda page: page.name)

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_sequentially(pages, self._read_file)

    def _read_file(self, page: Page) -> Iterator[Contents]:
        filesystem, _ = _resolve(str(self.manifest))
        is_local = isinstance(filesystem, pa.fs.LocalFileSystem)
        base = page.name if is_local else f"{str(self.manifest).partition('://')[0]}://{page.name}"
        for piece in _pieces(enumerate(rows(filesystem, page.name), 1)):
            contents = Contents()
            for number, row in piece:
                try:
                    _add(contents, row, base)
                except MALFORMED as error:
                    detail = f"row {number} of {page.name}: {error}"
                    contents.problems.append(Problem("bad_row", detail))
            yield contents


def _pieces(numbered: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    """Rows in pieces; of a file that breaks off, also those before the break."""
    piece: list[tuple[int, Row]] = []
    try:
        for item in numbered:
            piece.append(item)
            if len(piece) == ROWS_PER_PIECE:
                yield piece
                piece = []
    except Exception:
        yield piece
        raise
    yield piece


def _page(file: pa.fs.FileInfo, folder: str, number: int) -> Page:
    try:
        return Page(file.path, f"{file.size} bytes, {file.mtime_ns} ns")
    except UnicodeDecodeError:
        return unusable_page(f"{folder}, entry {number}", "bad_name", "the name is not UTF-8: rename it")


def _resolve(location: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" in location:
        filesystem, path = pa.fs.FileSystem.from_uri(location)
        return filesystem, path
    return pa.fs.LocalFileSystem(), posixpath.abspath(posixpath.expanduser(location))


def _add(contents: Contents, row: Row, base: str) -> None:
    """Add a row as a track, a playlist entry or both, according to its columns. Raises one of MALFORMED."""
    if "track_uri" in row:
        track, artist = million.describe(row)
        contents.tracks.append(track)
        contents.artists.append(artist)
    elif not row.keys() >= PLAYLIST_COLUMNS:
        track, artists = describe(row, base)
        contents.tracks.append(track)
        contents.artists.extend(artists)
    if row.keys() >= PLAYLIST_COLUMNS:
        contents.playlist_entries.append(_entry(row))


def describe(row: Row, base: str) -> tuple[Track, list[Artist]]:
    """A row as a track and its artists; `base` is the path or the URL of the manifest, to which the paths in
    it are relative. Raises ValueError."""
    identity, location = _text(row, "id"), _text(row, "url") or _text(row, "path")
    isrc = _text(row, "isrc")
    if not identity or not (location or isrc):
        raise ValueError(f"needs id and url, or id and isrc, has {_shortened(row)}")
    if location and "://" not in location:
        location = _locate(location, base)
    names = _texts(row, "artist")
    artists = [Artist(f"manifest:artist:{name.casefold()}", name) for name in names]
    album, date = _text(row, "album"), _date(_text(row, "date"))
    key, mode = tonality(_text(row, "key"), _text(row, "mode"))
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
        tempo_bpm=tempo(_text(row, "tempo")),
        key=key,
        mode=mode,
        license=_text(row, "license"),
        audio_version=location or "",
    )
    return track, artists


def _locate(path: str, base: str) -> str:
    """A path in a manifest. In one that came from a URL, it names nothing of this machine."""
    if "://" not in base:
        return posixpath.join(posixpath.dirname(base), posixpath.expanduser(path))
    scheme, _, place = base.partition("://")
    return f"{scheme}://{urljoin(f'//{place}', path).removeprefix('//')}"


def _track_id(text: str) -> str:
    """An id that begins with the name of a source as it is, any other as one of the manifest."""
    text = text.replace("spotify:track:", "spotify:", 1)
    return text if QUALIFIED_ID.match(text) else f"manifest:{text}"


def _entry(row: Row) -> PlaylistEntry:
    playlist, position, track = (_text(row, column) for column in ("playlist", "position", "track"))
    identity = _text(row, "playlist_id") or playlist
    if not identity or not track:
        raise ValueError(f"needs playlist, position and track, has {_shortened(row)}")
    if not position or not re.fullmatch(r"\d{1,9}", position):
        raise ValueError(f"position {position!r} in playlist {identity} is not an integer from 0")
    return PlaylistEntry(
        f"manifest:playlist:{identity}", playlist or identity, int(position), _track_id(track)
    )


def _shortened(row: Row) -> str:
    """The first cells of a row, for a message, however long or deeply nested."""
    shortener = reprlib.Repr()
    shortener.maxstring = 100
    return shortener.repr({str(name): value for name, value in itertools.islice(row.items(), 4)})


def _text(row: Row, column: str) -> str | None:
    value = row.get(column)
    return _cell(value, column).strip() or None if value is not None else None


def _texts(row: Row, column: str) -> list[str]:
    value = row.get(column)
    values = value if isinstance(value, list) else (_text(row, column) or "").split(LIST_SEPARATOR)
    return list(dict.fromkeys(text for item in values if (text := _cell(item, column).strip())))


def _cell(value: object, column: str) -> str:
    """A cell as text. Raises ValueError for one that is no text, or that a table cannot hold."""
    if isinstance(value, list | dict):
        raise ValueError(f"{column} {reprlib.repr(value)} is not text")
    text = str(value)
    if not text.isascii():
        text.encode()  # UnicodeEncodeError, a ValueError
    return text


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
