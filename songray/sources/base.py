"""What every source of songs offers: pages to read, and the place of a track's audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Track:
    """What a catalogue knows of one song; unknown fields stay empty.

    `audio_version` changes when the sound behind the id does, and only then: a change of it makes
    a new revision, which the later stages compute anew. All other changes only update the row.
    """

    track_id: str  # "<source>:<id within the source>"
    title: str
    location: str | None  # URL or absolute path of the audio, as known when crawled
    artist_ids: list[str] = field(default_factory=list)
    artist_names: list[str] = field(default_factory=list)
    album_id: str | None = None
    album: str | None = None
    release_date: str | None = None  # "1987", "1987-06" or "1987-06-30"
    release_date_precision: str | None = None  # "year", "month" or "day"
    duration_seconds: float | None = None
    genres: list[str] = field(default_factory=list)
    isrc: str | None = None
    explicit: bool | None = None
    recording: str | None = None  # groups ids that are one recording
    audio_version: str = ""


@dataclass(frozen=True)
class Artist:
    artist_id: str
    name: str
    genres: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlaylistEntry:
    playlist_id: str
    playlist: str  # its name
    position: int  # from 0
    track_id: str


@dataclass(frozen=True)
class Page:
    """A piece of a catalogue that is read as a whole: a file, a block of lines, an answer.

    A page whose name and fingerprint were read before is not read again.
    """

    name: str  # unique within the source
    fingerprint: str  # differs whenever the content does; cheap to find out


@dataclass(frozen=True)
class Contents:
    """What a piece of a page held. A problem is "class: sentence with the place"."""

    tracks: list[Track] = field(default_factory=list)
    artists: list[Artist] = field(default_factory=list)
    playlist_entries: list[PlaylistEntry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Source(Protocol):
    """A frozen dataclass of its options: it travels to the workers by pickle."""

    def pages(self) -> Iterator[Page]:
        """All pages there are now, cheaply; raises ValueError on options that cannot work."""

    def read(self, page: Page) -> Iterator[Contents]:
        """One page, on any worker, in pieces that fit memory; a bad item is a problem, not an exception."""
