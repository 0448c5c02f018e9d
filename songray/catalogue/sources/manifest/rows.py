"""The rows of a manifest: CSV, JSON lines or Parquet, or the tracks of playlists in JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
from collections import deque
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from songray.catalogue.sources.manifest import million
from songray.catalogue.sources.manifest.formulas import unescape
from songray.errors import CorruptData
from songray.library import Row

ROWS_PER_PIECE = 1000
MAX_ROW_LINES = 100  # of a row of CSV; the quote of a longer one is not closed


def rows(filesystem: pa.fs.FileSystem, path: str) -> Iterator[Row]:
    """The rows of a file by its suffix. A malformed one lacks the required columns, and keeps its text for
    the message. Raises CorruptData."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".parquet":
        with filesystem.open_input_file(path) as file:
            for batch in pa.parquet.ParquetFile(file).iter_batches(ROWS_PER_PIECE):
                yield from _parquet_rows(batch)
    elif suffix in (".csv", ".jsonl", ".ndjson"):
        with filesystem.open_input_stream(path) as stream:
            # Bytes that are not UTF-8 become lone surrogates, which make a problem of their row alone.
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
            yield from _csv_rows(text) if suffix == ".csv" else map(_parse_line, text)
    elif suffix == ".json":
        with filesystem.open_input_stream(path) as stream:
            yield from million.rows(stream, path)
    else:
        raise CorruptData(f"{path}: a manifest ends in .csv, .jsonl, .parquet or .json")


def _parquet_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows > 1:
            for number in range(batch.num_rows):
                yield from _parquet_rows(batch.slice(number, 1))
        else:
            yield {"not UTF-8": ""}


class _Lines:
    """The lines of a file, for a reader of rows that may go back to the second line of its row."""

    def __init__(self, text: Iterator[str]) -> None:
        self.row: list[str] = []  # lines of the present row
        self._text = text
        self._again: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.row) == MAX_ROW_LINES:
            raise csv.Error("a quote is not closed")
        self.row.append(self._again.popleft() if self._again else next(self._text))
        return self.row[-1]

    def go_back(self) -> None:
        self._again.extendleft(reversed(self.row[1:]))


def _csv_rows(text: Iterator[str]) -> Iterator[Row]:
    """Rows of CSV by the names in its first line. A malformed row becomes one without the required columns,
    which keeps its text for the message; its first line alone is skipped, since a quote that is not closed
    takes the following lines for text."""
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise CorruptData(f"its first line is not CSV: {error}") from error
    while True:
        lines.row = []
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield {f"not CSV ({error})": lines.row[0].strip()[:80]}
            lines.go_back()
            continue
        if values:
            yield dict(itertools.zip_longest(names, map(unescape, values[: len(names)])))


def _parse_line(line: str) -> Row:
    """A line of JSON as a row. A malformed line becomes a row without the required columns, which keeps its
    text for the message."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {"not JSON": line.strip()[:80]}
    return row if isinstance(row, dict) else {"not an object": row}
