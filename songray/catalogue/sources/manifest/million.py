"""The format of the Million Playlist Dataset: JSON playlists of Spotify tracks."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson

from songray.catalogue.sources.base import Artist, Track
from songray.errors import CorruptData
from songray.library import Row

URI = re.compile(r"spotify:(track|artist|album):(\w+)")


def rows(stream: BinaryIO, path: str) -> Iterator[Row]:
    """Each track of each playlist: the fields of the dataset, and playlist_id, playlist, position and track.

    Only one playlist is in memory at a time. Raises CorruptData.
    """
    playlists = 0
    try:
        for playlist in ijson.items(stream, "playlists.item", use_float=True):
            playlists += 1
            yield from _rows_of(playlist)
    except ijson.JSONError as error:
        raise CorruptData(f"{path} is broken JSON: {error}") from error
    if not playlists:
        raise CorruptData(f"{path} has no playlists: a .json file must be of the Million Playlist Dataset")


def _rows_of(playlist: Any) -> Iterator[Row]:
    if not isinstance(playlist, dict) or not isinstance(playlist.get("tracks"), list):
        yield {"not a playlist": reprlib.repr(playlist)}
        return
    names = {"playlist_id": playlist.get("pid"), "playlist": playlist.get("name")}
    for item in playlist["tracks"]:
        row = item if isinstance(item, dict) else {"not an object": item}
        yield names | {"position": row.get("pos"), "track": row.get("track_uri")} | row


def describe(row: Row) -> tuple[Track, Artist]:
    """A row as a track without audio, and its artist. Raises ValueError."""
    track_id = _id(row, "track")
    milliseconds = row.get("duration_ms")
    if not isinstance(milliseconds, int | float | None):
        raise ValueError(f"duration_ms {milliseconds!r} is not a number")
    artist = Artist(f"spotify:artist:{_id(row, 'artist')}", str(row.get("artist_name") or ""))
    track = Track(
        track_id=f"spotify:{track_id}",
        title=str(row.get("track_name") or track_id),
        location=None,
        artist_ids=[artist.artist_id],
        artist_names=[artist.name],
        album_id=f"spotify:album:{_id(row, 'album')}",
        album=str(row.get("album_name") or ""),
        duration_seconds=milliseconds / 1000 if milliseconds else None,
    )
    return track, artist


def _id(row: Row, kind: str) -> str:
    uri = row.get(f"{kind}_uri")
    if (match := URI.fullmatch(str(uri))) and match[1] == kind:
        return match[2]
    raise ValueError(f"{kind}_uri {uri!r} is not like spotify:{kind}:ID")
