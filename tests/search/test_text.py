"""Text search over titles, artists and albums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from songray.search.text import TextIndex, add_tracks, bare_title

SONGS = [
    ("Jóga", "Björk", "Homogenic"), ("Creep", "Radiohead", "Pablo Honey"), ("7", "Prince", "Love Symbol"),
    ("Creeping Death", "Metallica", "Ride"), ("One", "U2", "Achtung Baby"),
    ("99 Luftballons", "Nena", "Nena"), ("One", "Metallica", "And Justice for All"),
    ("Für Elise", "Beethoven", "Bagatelles"),
    ("さくら", "直太朗", "乾いた唄"), ("Naïve", "The Kooks", "Inside In"),
    ("Straße", "Kraftklub", "In Schwarz"),
]  # fmt: skip
ALL_LIVE = np.ones(len(SONGS), bool)


def table(songs: list[tuple[str | None, str, str]]) -> pa.Table:
    titles, artists, albums = zip(*songs, strict=True)
    return pa.table({"title": titles, "artist_names": [[name] for name in artists], "album": albums})


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> TextIndex:
    path = tmp_path_factory.mktemp("text") / "names.sqlite"
    add_tracks(path, table(SONGS[:6]), first=0)
    add_tracks(path, table(SONGS[6:]), first=6)
    return TextIndex(path)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("bjork", "Jóga"), ("BJÖRK joga", "Jóga"), ("joga bjork", "Jóga"), ("radoihead", "Creep"),
        ("radiohed creap", "Creep"), ("cre radioh", "Creep"), ("creep", "Creep"),
        ("creeping", "Creeping Death"), ("7", "7"), ("u2", "One"), ("one metal", "One"),
        ("fur elise", "Für Elise"), ("さくら", "さくら"),
        ("naive", "Naïve"), ("strasse", "Straße"), ("luftbalons", "99 Luftballons"), ('"creep"* OR', "Creep"),
        ("homogenic", "Jóga"), ("'); DROP TABLE names; -- creep radiohead pablo honey", "Creep"),
    ],
)  # fmt: skip
def test_accents_spelling_errors_and_unfinished_words_match(songs: TextIndex, text: str, title: str) -> None:
    matches = songs.search(text, 3, ALL_LIVE)
    assert SONGS[matches[0][0]][0] == title
    assert all(0 < score <= 1 for _, score in matches)


@pytest.mark.parametrize("text", ["zzz", "qqqq wwww"])
def test_nonsense_matches_nothing(songs: TextIndex, text: str) -> None:
    assert songs.search(text, 5, ALL_LIVE) == []


def test_deleted_tracks_do_not_match(songs: TextIndex) -> None:
    live = np.array([title != "Creep" for title, _, _ in SONGS])
    assert [SONGS[label][0] for label, _ in songs.search("creep", 5, live)] == ["Creeping Death"]


@pytest.mark.parametrize(
    ("title", "bare"),
    [
        ("Heroes (2017 Remaster)", "heroes"),
        ("Heroes - Live at Wembley", "heroes"),
        ("Heroes [Radio Edit] (feat. Someone)", "heroes"),
        ("(I Can't Get No) Satisfaction - Mono", "i can t get no satisfaction"),
        ("Live and Let Die", "live and let die"),
        ("Live", "live"),
        ("(Live)", "live"),
        ("Jóga", "joga"),
        ("", ""),
    ],
)
def test_titles_of_editions_are_the_same(title: str, bare: str) -> None:
    assert bare_title(title) == bare


@pytest.mark.timeout(20)  # an expression that backtracks took minutes
@pytest.mark.parametrize("part", [" - live", " - ", "(live ", "[(live", "\t - \t"])
def test_a_long_title_takes_no_longer_than_reading_it(part: str, tmp_path: Path) -> None:
    title = part * (28_000 // len(part)) + "("
    assert len(bare_title(title)) <= len(title)
    add_tracks(tmp_path / "names.sqlite", table([(title, "Björk" * 28_000, "Homogenic")]), first=0)
    assert TextIndex(tmp_path / "names.sqlite").search("homogenic", 1, np.ones(1, bool))
