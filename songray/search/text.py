"""Text search over titles, artists and albums, tolerant of accents, spelling and unfinished words.

names.sqlite holds the trigrams of each track's words (FTS5). The rarest trigrams of a query select a few
hundred tracks, whose words are then compared with those of the query by edit distance.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import OSA

from songray.library import Vectors

MAX_CHARACTERS = 1000  # of a name, or a query, that are read
MAX_WORDS = 256  # of a track that are indexed
MAX_QUERY_WORDS = 16
MAX_CANDIDATES = 300  # tracks that are compared by edit distance, for each of the two selections
MAX_GRAM_ROWS = 10_000  # rows that the rarest trigrams of a query select, all together
MIN_SCORE = 0.6


def fold(text: str) -> str:
    """Remove accents and case: "Björk" becomes "bjork". What follows MAX_CHARACTERS is left out."""
    text = text[:MAX_CHARACTERS]
    if text.isascii():
        return text.lower()
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", fold(text))


# Each of these takes linear time: no repetition within it overlaps with another one.
_EDITION = re.compile(
    r"\b(?:remaster(?:ed)?|live|mono|stereo|version|edit|mix|deluxe|bonus|anniversary|radio|single|album"
    r"|original|demo|acoustic|explicit|feat|ft|featuring)\b"
)
_BRACKETED = re.compile(r"\([^()\[\]]*\)|\[[^()\[\]]*\]")
_DASH = re.compile(r"\s[-–—]\s")


def bare_title(title: str) -> str:
    """The words of a title without the name of an edition, such as "(Remastered 2011)" or " - Live at …"."""
    folded = fold(title)
    end = 1 + max(map(folded.rfind, "()[]"))  # of the last bracket: an edition after a dash has none
    name, rest = folded[:end], folded[end:]
    dash = _DASH.search(rest)
    if dash and _EDITION.search(rest, dash.end()):
        rest = rest[: dash.start()]
    name = _BRACKETED.sub(lambda part: "" if _EDITION.search(part[0]) else part[0], name)
    return " ".join(words(name + rest) or words(folded))


def add_tracks(path: Path, tracks: pa.Table, first: int) -> None:
    """Add the titles, artists and albums of tracks to a database, which is created where it does not exist.

    Labels count from `first`.
    """
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    with database:
        database.execute("CREATE VIRTUAL TABLE IF NOT EXISTS names USING fts5(name, tokenize='trigram')")
        columns = (tracks[name].to_pylist() for name in ("title", "artist_names", "album"))
        database.executemany(
            "INSERT INTO names (rowid, name) VALUES (?, ?)",
            (
                (label, _padded(_words([title, album, *(artists or [])])))
                for label, (title, artists, album) in enumerate(zip(*columns, strict=True), first)
            ),
        )
        database.execute("DROP TABLE IF EXISTS grams")
        database.execute("CREATE VIRTUAL TABLE temp.counts USING fts5vocab(main, names, row)")
        database.execute("CREATE TABLE grams (gram TEXT PRIMARY KEY, tracks INTEGER) WITHOUT ROWID")
        database.execute("INSERT INTO grams SELECT term, doc FROM counts")
    database.close()


def _words(names: Iterable[str | None]) -> Iterable[str]:
    """The first words of several names."""
    return islice(chain.from_iterable(words(name or "") for name in names), MAX_WORDS)


def _padded(words: Iterable[str]) -> str:
    """Words with two spaces before each, so that its first one and two letters are in trigrams as well, as in
    PostgreSQL's pg_trgm."""
    return "".join(f"  {word}" for word in words)


def _trigrams(word: str) -> set[str]:
    return {_padded([word])[start : start + 3] for start in range(len(word))}


class TextIndex:
    """The text search of one shard. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path}?immutable=1", uri=True, check_same_thread=False)
        self._database.execute("SELECT gram FROM grams LIMIT 1")  # opens the file, which may then be unlinked

    def search(self, text: str, limit: int, live: NDArray[np.bool_]) -> list[tuple[int, float]]:
        """Labels and scores, 0…1, of the live tracks that match a text, best first.

        A track matches where its words equal, start with or nearly equal those of the text.
        """
        query = list(dict.fromkeys(words(text)))[:MAX_QUERY_WORDS]
        candidates = self._candidates(query, live)
        scores = score(query, [names.split() for _, names in candidates]).tolist()
        matches = [
            (label, value) for (label, _), value in zip(candidates, scores, strict=True) if value >= MIN_SCORE
        ]
        return sorted(matches, key=lambda match: (-match[1], match[0]))[:limit]

    def _candidates(self, query: Sequence[str], live: NDArray[np.bool_]) -> list[tuple[int, str]]:
        """Labels and names of live tracks: those that contain the rarest trigram of every word, then those
        that contain any of the rarest trigrams of the query."""
        of_word = [_trigrams(word) for word in query]
        counts = self._counts(set().union(*of_word))
        every = [
            min(grams & counts.keys(), key=lambda gram: (counts[gram], gram), default="") for grams in of_word
        ]
        totals = zip(counts, accumulate(counts.values()), strict=True)
        rare = [gram for gram, total in totals if total <= MAX_GRAM_ROWS] or list(counts)[:1]
        candidates: dict[int, str] = {}
        for grams, operator in ((every, " AND "), (rare, " OR ")):
            if grams and all(grams):
                expression = operator.join(f'"{gram}"' for gram in dict.fromkeys(grams))
                sql = "SELECT rowid, name FROM names WHERE names MATCH ? ORDER BY rank"
                rows = self._database.execute(sql, (expression,))
                candidates |= islice((row for row in rows if live[row[0]]), MAX_CANDIDATES)
        return list(candidates.items())

    def _counts(self, grams: set[str]) -> dict[str, int]:
        """The number of tracks that contain each trigram, rarest first; trigrams of no track are left out."""
        places = ", ".join("?" * len(grams))
        sql = f"SELECT gram, tracks FROM grams WHERE gram IN ({places}) ORDER BY tracks"
        return dict(self._database.execute(sql, sorted(grams)))


def score(query: Sequence[str], names: Sequence[Sequence[str]]) -> Vectors:
    """How well each name, a list of words, contains the words of a query, 0…1.

    This is the mean over the words of the query of the highest likeness to a word, or, weighted by 0.95, to
    the beginning of a word; shorter names score slightly higher. Likeness is 1 − edits / letters, where an
    exchange of neighbouring letters is one edit (optimal string alignment).
    """
    if not names:
        return np.empty(0, np.float32)
    lengths = np.array([len(name) for name in names])
    flat = [word for name in names for word in name]
    likeness = process.cdist(query, flat, scorer=OSA.normalized_similarity)  # (query, words)
    for row, word in zip(likeness, query, strict=True):
        beginnings = [other[: len(word)] for other in flat]
        begun = process.cdist([word], beginnings, scorer=OSA.normalized_similarity)[0]
        np.maximum(row, 0.95 * begun, out=row)
    best = np.maximum.reduceat(likeness, np.cumsum(lengths) - lengths, axis=1)  # (query, names)
    scores: Vectors = best.mean(axis=0) * (0.9 + 0.1 * np.minimum(1, len(query) / lengths))
    return scores
