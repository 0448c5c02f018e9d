from __future__ import annotations

import csv
import io
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from songray.catalogue.sources.manifest.formulas import escape, unescape
from songray.catalogue.sources.manifest.source import ManifestSource
from songray.service.playlists import COLUMNS, write_csv

TRACK = {
    "track_id": "deezer:1", "title": "x", "artist_names": ["y"], "album": None, "release_date": "1999",
    "duration_seconds": 12.5, "isrc": None, "license": None, "preview": "https://x.test/1.mp3",
}  # fmt: skip
NAMES = ["=HYPERLINK(A1)", "+44", "-M-", "@home", "'-M-'", "'Til Tuesday", "Ordinary, name", "＝x", "''"]


def test_no_cell_of_csv_is_a_formula_and_manifests_read_names_as_they_were(tmp_path: Path) -> None:
    text = write_csv([TRACK | {"title": name, "artist_names": [name], "album": name} for name in NAMES])
    header, *rows = csv.reader(io.StringIO(text))
    assert tuple(header) == COLUMNS
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "＝"))]
    assert [row[1] for row in rows] == [
        "'=HYPERLINK(A1)", "'+44", "'-M-", "'@home", "''-M-'", "'Til Tuesday", "Ordinary, name", "'＝x", "''",
    ]  # fmt: skip
    assert rows[0][5] == "12.5" and rows[0][6] == ""
    columns = "id,title,artist,album,date,duration,isrc,license,url"
    manifest = tmp_path / "export.csv"
    manifest.write_text(text.replace(",".join(COLUMNS), columns), "utf-8")
    source = ManifestSource(str(manifest))
    tracks = [track for _, piece in source.read(list(source.pages())) for track in piece.tracks]
    assert [(track.title, track.artist_names, track.album) for track in tracks] == [
        (name, [name], name) for name in NAMES
    ]


@given(st.text() | st.text("'=+-@\t\r\n＝a", max_size=4))
@example("'=x")
def test_escaping_is_inverted(text: str) -> None:
    assert unescape(escape(text)) == text
    assert not escape(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
