"""A personal music folder, searched recursively; its files are described by their tags."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar, cast
from urllib.parse import quote

from tinytag import TinyTag, UnsupportedFormatError

from songray.catalogue.sources.base import Artist, Contents, Page, Problem, Track
from songray.catalogue.sources.reading import read_sequentially, unusable_page
from songray.catalogue.sources.tonality import tempo, tonality
from songray.errors import InvalidOption
from songray.media import AudioFile, open_container

SUFFIXES = (".mp3", ".m4a", ".m4b", ".mp4", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wav", ".aif", ".aiff",
            ".aifc", ".wma", ".wv", ".ape", ".mpc")  # fmt: skip
SKIPPED_FOLDERS = {
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}  # in lower case; and hidden ones
UNLISTED = ("unreadable", "linked_folder")  # problems of folders whose contents are unknown
OTHER_TAGS = ("isrc", "bpm", "initial_key", "license", "copyright")  # as TinyTag names them
HASHED_BYTES = 8 << 20  # of compressed audio: most MP3 files as a whole, a minute of FLAC

Value = TypeVar("Value")


@dataclass(frozen=True)
class FolderSource:
    name: ClassVar[str] = "folder"
    is_complete: ClassVar[bool] = True
    is_public: ClassVar[bool] = False

    folder: Path | None = None
    """Music folder, searched recursively."""

    def pages(self) -> Iterator[Page]:
        if self.folder is None or not self.folder.expanduser().is_dir():
            raise InvalidOption(f"--folder {self.folder}: name a folder that exists")
        yield from sorted(_pages(self._root(self.folder)), key=lambda page: page.name)

    def vanished(self, stored: Iterable[str], listed: Sequence[Page]) -> set[str]:
        """None where the folder is empty, like one whose drive is not mounted; nor below a folder that cannot
        be read, or that a link has replaced."""
        names = {page.name for page in listed}
        if not names or not self.folder:
            return set()
        root = posixpath.join(self._root(self.folder), "")
        closed = tuple(f"{page.name}/" for page in listed if (page.fingerprint or "").startswith(UNLISTED))
        gone = (name for name in stored if name not in names and name.startswith(root))
        return {name for name in gone if not name.startswith(closed)}

    @staticmethod
    def _root(folder: Path) -> Path:
        return folder.expanduser().resolve()

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_sequentially(pages, _read_file)


def _pages(folder: Path) -> Iterator[Page]:
    """A page for each audio file, and one for each entry that cannot be used."""
    folders = [str(folder)]
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as scanned:
                entries = list(scanned)
        except OSError as error:
            yield _unusable(parent, "unreadable", str(error.strerror))
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name.startswith(".") or entry.name.lower() in SKIPPED_FOLDERS:
                    yield _unusable(entry.path, "skipped_folder", "hidden, a recycle bin or of the system")
                else:
                    folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                yield _unusable(entry.path, "linked_folder", "a link to a folder is not followed")
            elif Path(entry.name).suffix.lower() in SUFFIXES and not entry.name.startswith("."):
                yield _page(entry.path)


def _page(path: str) -> Page:
    try:
        path.encode()
        state = os.stat(path)
    except UnicodeEncodeError:
        return _unusable(path, "bad_name", "the name is not UTF-8: rename it")
    except OSError as error:
        kind = "broken_link" if os.path.islink(path) else "unreadable"
        return _unusable(path, kind, str(error.strerror))
    if not stat.S_ISREG(state.st_mode):
        return _unusable(path, "not_a_file", "a pipe, a socket or a device")
    if not os.access(path, os.R_OK):
        return _unusable(path, "unreadable", "Permission denied")
    return Page(path, f"{state.st_size} bytes, {state.st_mtime_ns} ns")


def _unusable(path: str, kind: str, reason: str) -> Page:
    return unusable_page(os.fsencode(path).decode(errors="backslashreplace"), kind, reason)


def _read_file(page: Page) -> Iterator[Contents]:
    path = Path(page.name)
    identity = sound_hash(path)
    try:
        contents = _describe(path, identity, _read_tags(path))
    except Exception as error:  # of a parser that reads whatever bytes are in a file
        track = Track(f"folder:{identity}", path.stem, str(path), audio_version=str(path))
        contents = Contents([track], problems=[Problem("no_tags", f"{path}: {error}")])
    yield contents


def _read_tags(path: Path) -> TinyTag:
    with path.open("rb") as opened:
        file = AudioFile(opened)  # TinyTag reads on where a position that a tag names does not exist
        try:
            return TinyTag.get(path, cast(BinaryIO, file))
        except UnsupportedFormatError:
            file.seek(0)
            return _tags_by_ffmpeg(file)


def _tags_by_ffmpeg(file: AudioFile) -> TinyTag:
    """The tags of formats that TinyTag does not read: Monkey's Audio, WavPack, Musepack."""
    with open_container(file) as container:
        tags = {name.lower(): text for name, text in container.metadata.items()}
        seconds = container.duration and container.duration / 1e6
    tag = TinyTag()
    tag.title, tag.artist, tag.album = (tags.get(name) for name in ("title", "artist", "album"))
    tag.albumartist, tag.year, tag.genre = (tags.get(name) for name in ("album_artist", "date", "genre"))
    tag.duration = seconds
    return tag


def sound_hash(path: Path) -> str:
    """Hash of the audio alone, in hexadecimal, which depends neither on the path nor on the tags.

    It covers the first HASHED_BYTES of the compressed packets; of a file that cannot be demuxed, the first
    HASHED_BYTES of the file.
    """
    with io.FileIO(path) as opened:
        file = AudioFile(opened)
        try:
            return _packet_hash(file)
        except Exception:  # whatever PyAV raises
            file.seek(0)
            start = file.read(HASHED_BYTES)
            return hashlib.blake2b(start, digest_size=10).hexdigest()
        finally:
            file.check()


def _packet_hash(file: AudioFile) -> str:
    digest = hashlib.blake2b(digest_size=10)
    hashed = 0
    with open_container(file) as container:
        stream = container.streams.audio[0]
        for packet in container.demux(stream):
            digest.update(memoryview(packet))
            hashed += packet.size
            if hashed > HASHED_BYTES:
                break
    if hashed == 0:
        raise ValueError("there are no packets of audio")
    return digest.hexdigest()


def _describe(path: Path, identity: str, tag: TinyTag) -> Contents:
    names = list(dict.fromkeys(filter(None, [tag.artist, *tag.other.get("artist", [])])))
    artists = [Artist(f"folder:artist:{quote(name.casefold())}", name) for name in names]
    album_artist = tag.albumartist or tag.artist or ""
    album_id = posixpath.join("folder:album:", quote(f"{album_artist} {tag.album}".casefold()))
    date, precision = _date(tag.year)
    other = {name: next(iter(tag.other.get(name, [])), None) for name in OTHER_TAGS}
    key, mode = _valid(tonality, other["initial_key"]) or (None, None)
    track = Track(
        track_id=f"folder:{identity}",
        title=tag.title or path.stem,
        location=str(path),
        artist_ids=[artist.artist_id for artist in artists],
        artist_names=names,
        album_id=album_id if tag.album else None,
        album=tag.album,
        release_date=date,
        release_date_precision=precision,
        duration_seconds=tag.duration,
        genres=list(dict.fromkeys(filter(None, [tag.genre, *tag.other.get("genre", [])]))),
        isrc=other["isrc"],
        tempo_bpm=_valid(tempo, other["bpm"]),
        key=key,
        mode=mode,
        license=other["license"] or _license_in(other["copyright"]),
        audio_version=str(path),  # previews refer to the file by its path
    )
    return Contents([track], artists)


def _valid(parse: Callable[[str | None], Value], text: str | None) -> Value | None:
    """What a tag says, or None where that is not valid: the file is described without it."""
    try:
        return parse(text)
    except ValueError:
        return None


def _license_in(copyright: str | None) -> str | None:
    """The URL of a Creative Commons licence in a copyright notice."""
    match = re.search(r"https?://creativecommons\.org/\S+", copyright or "")
    return match[0].rstrip(".,;)") if match else None


def _date(year: str | None) -> tuple[str | None, str | None]:
    """A tag's date ("1987", "1987-06-30", "1987-06-30T00:00:00") and its precision."""
    parts = (year or "").split("T")[0].split("-")
    if not all(part.isdigit() for part in parts) or len(parts[0]) != 4:
        return None, None
    return "-".join(parts[:3]), ("year", "month", "day")[min(len(parts), 3) - 1]
