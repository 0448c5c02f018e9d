"""The interface of a source: pages to read, and what they contain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True)
class Track:
    """The metadata of a track; fields without a value stay empty.

    `audio_version` changes when, and only when, the audio behind the id does. A change of it makes a new
    revision, which the later stages compute again; any other change only updates the row.
    """

    track_id: str  # "<source>:<id within the source>"
    title: str
    location: str | None  # of the audio: URL, absolute path, or "<source>:<reference>", which that source
    # resolves to a URL at download time (registry.AudioServices.locate)
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
    recording: str | None = None  # the same for all ids of one recording
    tempo_bpm: float | None = None
    key: str | None = None  # pitch class of the tonic, one of tonality.PITCH_CLASSES
    mode: str | None = None  # "major" or "minor"
    license: str | None = None  # its name or its URL
    audio_version: str = ""


@dataclass(frozen=True)
class Artist:
    artist_id: str
    name: str
    genres: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RelatedArtist:
    """An artist that a catalogue calls related to another."""

    artist_id: str
    related_id: str


@dataclass(frozen=True)
class PlaylistEntry:
    playlist_id: str
    playlist: str  # its name
    position: int  # from 0
    track_id: str


@dataclass(frozen=True)
class Page:
    """A part of a catalogue that is read as a whole: a file, a block of rows, one response of an API.

    A page that was read is not read again while its fingerprint stays the same.
    """

    name: str  # unique within the source
    fingerprint: str | None = ""  # changes with the content. "": unknown before reading, so the page is read
    # once, and again by a crawl with `refresh`; None: read by every crawl
    step: int = 0  # depth that following a link to this page adds: 0 or 1


class Problem(NamedTuple):
    """Something in a page that cannot be read or used."""

    kind: str  # the class by which problems are counted
    detail: str  # a sentence that names the place


@dataclass(frozen=True)
class Contents:
    """What a piece of a page contains."""

    tracks: list[Track] = field(default_factory=list)
    artists: list[Artist] = field(default_factory=list)
    playlist_entries: list[PlaylistEntry] = field(default_factory=list)
    related_artists: list[RelatedArtist] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)  # linked from it
    finished: bool = False  # the last piece of its page; a page without one counts as not read


@dataclass(frozen=True)
class AudioLocation:
    """Where the audio of a track is."""

    url: str  # an http(s) URL, or an absolute path
    audio_id: str | None = None  # id of the track that the audio belongs to, where the service reports it
    is_public: bool = False  # no request may reach a private address, redirects included
    expires: bool = False  # HTTP 403 may mean that the link has expired: locate the audio once more


class Source(Protocol):
    """A frozen dataclass of options, which travels to the workers by pickle."""

    name: ClassVar[str]
    is_complete: ClassVar[bool]  # each page contains all metadata of its tracks
    is_public: ClassVar[bool]  # a public catalogue, whose links must not lead to private addresses

    def pages(self) -> Iterator[Page]:
        """The pages to start from, without reading them. Raises InvalidOption."""

    def read(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Contents]]:
        """Read pages, on any worker, in pieces that fit into memory. A malformed item is a Problem of its
        page and raises nothing."""


@runtime_checkable
class CompleteListing(Protocol):
    """A source whose `pages` are all of its pages: the tracks of a page that it no longer has are gone."""

    def vanished(self, stored: Iterable[str], listed: Sequence[Page]) -> set[str]:
        """The names of those stored pages that the source no longer has; `listed` are those it has."""
