"""A personal music folder, searched recursively; its files are described by their tags."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from tinytag import TinyTag, TinyTagException

from songray.catalogue.sources.base import Artist, Contents, Page, Problem, Track
from songray.catalogue.sources.reading import read_sequentially
from songray.errors import InvalidOption

SUFFIXES = (".mp3", ".m4a", ".m4b", ".mp4", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wav", ".aif", ".aiff",
            ".aifc", ".wma", ".wv", ".ape", ".mpc")  # fmt: skip
HASHED_BYTES = 8 << 20  # of compressed audio: most MP3 files as a whole, a minute of FLAC


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
        for path in sorted(_audio_files(self.folder.expanduser().resolve())):
            state = path.stat()
            yield Page(str(path), f"{state.st_size} bytes, {state.st_mtime_ns} ns")

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        return read_sequentially(pages, _read_file)


def _read_file(page: Page) -> Iterator[Contents]:
    path = Path(page.name)
    identity = sound_hash(path)
    try:
        yield _describe(path, identity, TinyTag.get(path))
    except (TinyTagException, OSError, ValueError) as error:
        track = Track(f"folder:{identity}", path.stem, str(path), audio_version=str(path))
        yield Contents([track], problems=[Problem("no_tags", f"{path}: {error}")])


def _audio_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=False):
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


def sound_hash(path: Path) -> str:
    """Hash of the audio alone, in hexadecimal, which depends neither on the path nor on the tags.

    It covers the first HASHED_BYTES of the compressed packets; of a file that cannot be demuxed, the first
    HASHED_BYTES of the file.
    """
    import av  # too slow to load for a job's --help

    try:
        return _packet_hash(path)
    except (av.FFmpegError, IndexError, ValueError):
        with path.open("rb") as file:
            start = file.read(HASHED_BYTES)
        return hashlib.blake2b(start, digest_size=10).hexdigest()


def _packet_hash(path: Path) -> str:
    import av

    digest = hashlib.blake2b(digest_size=10)
    hashed = 0
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.audio[0]
        for packet in container.demux(stream):
            digest.update(memoryview(packet))
            hashed += packet.size
            if hashed > HASHED_BYTES:
                break
    if hashed == 0:
        raise ValueError(f"{path} contains no packets of audio")
    return digest.hexdigest()


def _describe(path: Path, identity: str, tag: TinyTag) -> Contents:
    names = list(dict.fromkeys(filter(None, [tag.artist, *tag.other.get("artist", [])])))
    artists = [Artist(f"folder:artist:{quote(name.casefold())}", name) for name in names]
    album_artist = tag.albumartist or tag.artist or ""
    album_id = posixpath.join("folder:album:", quote(f"{album_artist} {tag.album}".casefold()))
    date, precision = _date(tag.year)
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
        isrc=next(iter(tag.other.get("isrc", [])), None),
        audio_version=str(path),  # previews refer to the file by its path
    )
    return Contents([track], artists)


def _date(year: str | None) -> tuple[str | None, str | None]:
    """A tag's date ("1987", "1987-06-30", "1987-06-30T00:00:00") and its precision."""
    parts = (year or "").split("T")[0].split("-")
    if not all(part.isdigit() for part in parts) or len(parts[0]) != 4:
        return None, None
    return "-".join(parts[:3]), ("year", "month", "day")[min(len(parts), 3) - 1]
