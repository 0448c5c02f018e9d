"""Playlists in the formats M3U8, CSV and XSPF.

The location of a track is the URL of its preview or the path of its file, where it has one, and otherwise its
id, which has the form of a URI; XSPF has a URI for a path, too. In CSV no cell is a formula; manifests read
such cells as they were.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from songray.catalogue.sources.manifest.formulas import escape

Track = dict[str, Any]  # as responses.track_json returns it
XSPF = "http://xspf.org/ns/0/"
COLUMNS = ("track_id", "title", "artists", "album", "release_date", "duration_seconds", "isrc", "license",
           "preview")  # fmt: skip


def write_m3u8(tracks: Sequence[Track]) -> str:
    lines = ["#EXTM3U"]
    for track in tracks:
        seconds = track["duration_seconds"]
        name = " - ".join(part for part in (_artists(track), track["title"]) if part)
        lines += [
            f"#EXTINF:{round(seconds) if seconds else -1},{_one_line(name)}",
            _one_line(location(track)),
        ]
    return "\n".join([*lines, ""])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def write_csv(tracks: Sequence[Track]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for track in tracks:
        values = ({**track, "artists": _artists(track)}[name] for name in COLUMNS)
        writer.writerow("" if value is None else escape(str(value)) for value in values)
    return text.getvalue()


def write_xspf(tracks: Sequence[Track]) -> str:
    """https://www.xspf.org/spec"""
    playlist = ElementTree.Element("playlist", version="1", xmlns=XSPF)
    track_list = ElementTree.SubElement(playlist, "trackList")
    for track in tracks:
        entry = ElementTree.SubElement(track_list, "track")
        seconds = track["duration_seconds"]
        fields = {
            "location": _uri(location(track)),
            "identifier": track["track_id"],
            "title": track["title"],
            "creator": _artists(track),
            "album": track["album"],
            "duration": str(round(seconds * 1000)) if seconds else None,
        }
        for name, value in fields.items():
            if value:
                ElementTree.SubElement(entry, name).text = _printable(value)
    return ElementTree.tostring(playlist, "unicode", xml_declaration=True)


def _printable(text: str) -> str:
    """Without the characters that XML does not allow."""
    return "".join(character for character in text if character.isprintable())


def location(track: Track) -> str:
    return str(track["preview"] or track["track_id"])


def _uri(location: str) -> str:
    return Path(location).as_uri() if location.startswith("/") else location


def _artists(track: Track) -> str:
    return ", ".join(track["artist_names"])


FORMATS: dict[str, tuple[str, Callable[[Sequence[Track]], str]]] = {  # name: media type, writer
    "m3u8": ("application/vnd.apple.mpegurl", write_m3u8),
    "csv": ("text/csv", write_csv),
    "xspf": ("application/xspf+xml", write_xspf),
}
DOCUMENTATION = {media_type: {"schema": {"type": "string"}} for media_type, _ in FORMATS.values()}


def accepted_format(accept: str) -> str:
    """The first format that a header Accept names; json where it names none of these."""
    for part in accept.split(","):
        for name, (media_type, _) in FORMATS.items():
            if part.split(";")[0].strip().lower() == media_type:
                return name
    return "json"
