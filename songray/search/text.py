"""Titles, artists and albums, found again by a text whose accents, letters and word ends may differ. No Ray.

names.sqlite holds the trigrams of their words (FTS5): the rare ones of a text lead to a few hundred names,
which are compared with it letter by letter.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import OSA

from songray.library import Vectors

NAMES_LIMIT = 300  # that are compared with a text letter by letter
GRAM_ROWS = 10_000  # that the rarest trigrams of a text lead to, all together
MIN_SCORE = 0.6


def fold(text: str) -> str:
    """Without accents and capitals, so that "bjork" is "Björk"."""
    if text.isascii():
        return text.lower()
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", fold(text))


_EDITION = (
    r"[^()\[\]]*\b(?:remaster(?:ed)?|live|mono|stereo|version|edit|mix|deluxe|bonus|anniversary|radio|single"
    r"|album|original|demo|acoustic|explicit|feat|ft|featuring)\b[^()\[\]]*"
)


_EDITIONS = re.compile(rf"\s*(?:\({_EDITION}\)|\[{_EDITION}\]|\s[-–—]\s{_EDITION}$)")


def bare_title(title: str) -> str:
    """A title's words, without what tells one edition from another: "(Remastered 2011)", " - Live at …"."""
    folded = fold(title)
    return " ".join(words(_EDITIONS.sub("", folded)) or words(folded))


def write(path: Path, tracks: pa.Table, first: int) -> None:
    """Make the names of tracks searchable, numbered from `first`."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    with database:
        database.execute("CREATE VIRTUAL TABLE IF NOT EXISTS names USING fts5(name, tokenize='trigram')")
        columns = (tracks[name].to_pylist() for name in ("title", "artist_names", "album"))
        database.executemany(
            "INSERT INTO names (rowid, name) VALUES (?, ?)",
            (
                (label, _spaced(words(" ".join([title or "", *(artists or []), album or ""]))))
                for label, (title, artists, album) in enumerate(zip(*columns, strict=True), first)
            ),
        )
        database.execute("DROP TABLE IF EXISTS grams")
        database.execute("CREATE VIRTUAL TABLE temp.counts USING fts5vocab(main, names, row)")
        database.execute("CREATE TABLE grams (gram TEXT PRIMARY KEY, tracks INTEGER) WITHOUT ROWID")
        database.execute("INSERT INTO grams SELECT term, doc FROM counts")
    database.close()


def _spaced(several: Iterable[str]) -> str:
    """Two spaces before each word: so its first letter, and its first two, are trigrams too (as in
    PostgreSQL's pg_trgm)."""
    return "".join(f"  {word}" for word in several)


class Names:
    """The names of a shard's tracks; any thread may ask."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path}?immutable=1", uri=True, check_same_thread=False)
        self._database.execute("SELECT gram FROM grams LIMIT 1")  # opens the file, which may then be unlinked

    def search(self, text: str, limit: int, live: NDArray[np.bool_]) -> list[tuple[int, float]]:
        """Labels, with a score up to 1, of the live tracks whose names hold words that are, start with or
        nearly are those of the text, best first."""
        asked = list(dict.fromkeys(words(text)))[:16]
        rows = self._alike(asked, live)
        scores = score(asked, [name.split() for _, name in rows]).tolist()
        found = [(label, one) for (label, _), one in zip(rows, scores, strict=True) if one >= MIN_SCORE]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:limit]

    def _alike(self, asked: list[str], live: NDArray[np.bool_]) -> list[tuple[int, str]]:
        """Tracks whose names share trigrams with the words, and these names: those with the rarest one of
        each word, and those with any of the rarest of all."""
        of_word = [{f"  {word}"[start : start + 3] for start in range(len(word))} for word in asked]
        grams = sorted(set().union(*of_word))
        sql = f"SELECT gram, tracks FROM grams WHERE gram IN ({', '.join('?' * len(grams))}) ORDER BY tracks"
        counts = dict(self._database.execute(sql, grams))  # rarest first
        rare = [
            gram for gram, rows in zip(counts, accumulate(counts.values()), strict=True) if rows <= GRAM_ROWS
        ]
        every = [
            min(word & counts.keys(), key=lambda gram: (counts[gram], gram), default="") for word in of_word
        ]
        found: dict[int, str] = {}
        for several, sign in ((every, " AND "), (rare or list(counts)[:1], " OR ")):
            if several and all(several):
                sql = "SELECT rowid, name FROM names WHERE names MATCH ? ORDER BY rank"
                asked_for = sign.join(f'"{gram}"' for gram in dict.fromkeys(several))
                rows = self._database.execute(sql, (asked_for,))
                found |= islice((row for row in rows if live[row[0]]), NAMES_LIMIT)
        return list(found.items())


def score(asked: Sequence[str], names: Sequence[Sequence[str]]) -> Vectors:
    """How well each name, given as its words, holds the words that are asked for, 0…1: the mean, over these,
    of the best likeness to a word or (a little less) to a word's beginning; a little more for short names.

    Likeness is 1 − edits / letters, where swapped neighbours are one edit (optimal string alignment)."""
    if not names:
        return np.empty(0, np.float32)
    lengths = np.array([len(name) for name in names])
    flat = [word for name in names for word in name]
    whole = process.cdist(asked, flat, scorer=OSA.normalized_similarity)  # (asked, words)
    for row, word in zip(whole, asked, strict=True):
        beginnings = [other[: len(word)] for other in flat]
        begun = process.cdist([word], beginnings, scorer=OSA.normalized_similarity)[0]
        np.maximum(row, 0.95 * begun, out=row)
    best = np.maximum.reduceat(whole, np.cumsum(lengths) - lengths, axis=1)  # (asked, names)
    scores: Vectors = best.mean(axis=0) * (0.9 + 0.1 * np.minimum(1, len(asked) / lengths))
    return scores
