"""The rows of a shard, in Arrow's IPC format and mapped.

They have the columns of SHOWN, those of COMPUTED under names with an underscore before, and, where the run
gives tags, their levels as _tags (songray/search/tags.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from songray.search.clusters import UNKNOWN
from songray.search.tags import Levels
from songray.search.version import TRACKS
from songray.tables import TABLES

SHOWN = (
    "track_id", "source", "title", "artist_ids", "artist_names", "album_id", "album", "release_date",
    "release_date_precision", "duration_seconds", "genres", "isrc", "explicit", "recording", "location",
    "tempo_bpm", "key", "mode", "license",
)  # fmt: skip
COMPUTED = {"x": "f4", "y": "f4", "artist": "i8", "album": "i8", "recording": "i8",
            "title": "i8", "duration": "f4", "year": "i2", "cluster": "i2"}  # fmt: skip
TAGS = "_tags"  # column of the levels of the tags
HOST = r"^(?P<host>https?://[A-Za-z0-9.-]+(?::[0-9]+)?)(?:[/?#]|$)"
MOST_HOSTS = 20


def read_rows(folder: Path) -> pa.RecordBatch:
    """The rows of a shard, mapped. What an earlier version did not store is null, and no cluster is known."""
    rows = pa.ipc.open_file(pa.memory_map(str(folder / TRACKS))).get_batch(0)
    for name in [name for name in SHOWN if name not in rows.schema.names]:
        rows = rows.append_column(name, pa.nulls(rows.num_rows, TABLES["tracks"].columns[name]))
    if "_cluster" not in rows.schema.names:
        rows = rows.append_column("_cluster", pa.array(np.full(rows.num_rows, UNKNOWN, np.int16)))
    return rows


def audio_hosts(tracks: pa.Table) -> list[str] | None:
    """The schemes and hosts of the locations of some tracks that are URLs, such as https://x.test; None where
    they are more than 20, or of a form that a Content Security Policy does not take."""
    urls = tracks["location"].filter(pa.compute.match_substring_regex(tracks["location"], "^https?://"))
    hosts = pa.compute.unique(pa.compute.struct_field(pa.compute.extract_regex(urls, HOST), "host"))
    return None if len(hosts) > MOST_HOSTS or hosts.null_count else sorted(hosts.to_pylist())


def tag_levels(rows: pa.RecordBatch, count: int) -> Levels:
    """The levels of the tags, (tracks, count), mapped; 0, unknown, in an index of an earlier version."""
    if TAGS not in rows.schema.names:
        return np.zeros((rows.num_rows, count), np.uint8)
    return np.frombuffer(rows[TAGS].buffers()[1], np.uint8).reshape(-1, count)
