"""The layout of the Million Playlist Dataset: JSON of playlists with tracks of Spotify."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson

from songray.catalogue.sources.base import Artist, Track

URI = re.compile(r"spotify:(track|artist|album):(\w+)")


def rows(stream: BinaryIO, place: str) -> Iterator[dict[str, Any]]:
    """Each track in each playlist: the dataset's own columns, and playlist_id, playlist, position and track.

    One playlist is in memory at a time. Raises ValueError on what is not such a file.
    """
    playlists = 0
    try:
        for playlist in ijson.items(stream, "playlists.item", use_float=True):
            playlists += 1
            yield from _rows_of(playlist)
    except ijson.JSONError as error:
        raise ValueError(f"{place} is broken JSON: {error}") from error
    if not playlists:
        raise ValueError(f"{place} has no playlists: a .json is one of the Million Playlist Dataset")


def _rows_of(playlist: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(playlist, dict) or not isinstance(playlist.get("tracks"), list):
        yield {"not a playlist": str(playlist)[:80]}
        return
    named = {"playlist_id": playlist.get("pid"), "playlist": playlist.get("name")}
    for item in playlist["tracks"]:
        row = item if isinstance(item, dict) else {"not an object": item}
        yield named | {"position": row.get("pos"), "track": row.get("track_uri")} | row


def describe(row: dict[str, Any]) -> tuple[Track, Artist]:
    """A row as a track without audio, which another source may have; raises ValueError on what is none."""
    track_id = _id(row, "track")
    milliseconds = row.get("duration_ms")
    if not isinstance(milliseconds, int | float | None):
        raise ValueError(f"duration_ms {milliseconds!r} is no number")
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


def _id(row: dict[str, Any], kind: str) -> str:
    uri = row.get(f"{kind}_uri")
    if (match := URI.fullmatch(str(uri))) and match[1] == kind:
        return match[2]
    raise ValueError(f"{kind}_uri {uri!r} is not like spotify:{kind}:ID")
