"""Every table of a library: its columns, its key and the job that fills it."""

from __future__ import annotations

import pyarrow as pa

from songray.table import TableKind

_STRINGS = pa.list_(pa.string())

TABLES = {
    "tracks": TableKind(
        job="crawl",
        key=("track_key",),
        newest="crawl",
        indexed=("crawl", "is_gone", "id_hash", "completeness", "audio_checksum", "checksum"),
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),  # "<source>:<id within the source>"
            "revision": pa.int32(),
            "crawl": pa.int64(),  # number of the crawl that wrote the row
            "source": pa.string(),
            "title": pa.string(),
            "artist_ids": _STRINGS,
            "artist_names": _STRINGS,
            "album_id": pa.string(),
            "album": pa.string(),
            "release_date": pa.string(),
            "release_date_precision": pa.string(),  # year, month or day
            "duration_seconds": pa.float64(),
            "genres": _STRINGS,
            "isrc": pa.string(),
            "explicit": pa.bool_(),
            "recording": pa.string(),  # groups ids that are one recording
            "tempo_bpm": pa.float64(),
            "key": pa.string(),  # pitch class of the tonic: C, C#, D, … B
            "mode": pa.string(),  # major or minor
            "license": pa.string(),  # its name or its URL
            "location": pa.string(),  # of the audio: URL, path, or "<source>:<id>", which that source locates
            "is_gone": pa.bool_(),  # its file is no longer in its folder, so it is not indexed
            "id_hash": pa.int64(),  # a second hash of the id: two ids with one number differ in it
            "completeness": pa.int32(),  # number of fields that the catalogue fills
            "audio_checksum": pa.int64(),  # of the version of the sound, 32 bits
            "checksum": pa.int64(),  # of all fields that the catalogue fills, the lower 5 bits zero
        },
    ),
    "artists": TableKind(
        job="crawl",
        key=("artist_id",),
        newest="crawl",
        columns={
            "artist_id": pa.string(),
            "crawl": pa.int64(),
            "name": pa.string(),
            "genres": _STRINGS,
        },
    ),
    "related_artists": TableKind(
        job="crawl",
        key=("artist_id", "related_id"),
        newest="crawl",
        columns={"artist_id": pa.string(), "related_id": pa.string(), "crawl": pa.int64()},
    ),
    "playlists": TableKind(
        job="crawl",
        key=("playlist_id", "position"),
        newest="crawl",
        columns={
            "playlist_id": pa.string(),
            "playlist": pa.string(),
            "position": pa.int32(),
            "crawl": pa.int64(),
            "version": pa.string(),  # shared by all entries of the playlist at one time
            "track_id": pa.string(),
        },
    ),
    "pages": TableKind(
        job="crawl",
        key=("source", "page"),
        newest="crawl",
        columns={
            "source": pa.string(),
            "page": pa.string(),
            "fingerprint": pa.string(),
            "crawl": pa.int64(),
            "page_problems": pa.list_(
                pa.struct({"kind": pa.string(), "detail": pa.string()})
            ),  # unreadable items
            "links": pa.list_(  # to pages that this page reaches in fewer steps than the pages before it
                pa.struct({"name": pa.string(), "fingerprint": pa.string(), "step": pa.int32()})
            ),
            "track_ids": _STRINGS,  # of the tracks on it, where its source lists all of its pages
        },
    ),
    "crawls": TableKind(
        job="crawl",
        key=("crawl",),
        columns={"crawl": pa.int64(), "source": pa.string(), "options": pa.string()},  # options as JSON
    ),
    "removed": TableKind(
        job="remove",
        key=("track_id",),
        columns={"track_id": pa.string(), "reason": pa.string(), "removed_at": pa.timestamp("s", "UTC")},
    ),
    "judgements": TableKind(
        job="serve",
        key=("session", "at"),
        columns={
            "session": pa.string(),  # of a listener: random, for one visit of the page
            "at": pa.timestamp("us", "UTC"),
            "track_id": pa.string(),  # whose neighbours were compared
            "left": pa.string(),  # run of the list on the left
            "right": pa.string(),
            "preferred": pa.string(),  # "left", "right" or "neither"
        },
    ),
    "previews": TableKind(
        job="download",
        key=("track_key",),
        indexed=("error",),
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "audio": pa.large_binary(),  # the file's bytes; null where `location` is a local file
            "location": pa.string(),  # URL that the audio was downloaded from, or path of a local file
            "audio_id": pa.string(),  # the track whose audio it is, where that is a track of another source
            "size_bytes": pa.int64(),
            "sha256": pa.binary(32),  # of `audio`
            "status": pa.int32(),  # of HTTP
            "attempts": pa.int32(),
            "seconds": pa.float64(),  # that all attempts together took
            "error": pa.string(),  # class of a permanent failure, else null
            "detail": pa.string(),
        },
    ),
    "spectrograms": TableKind(
        job="transform",
        key=("track_key",),
        indexed=("error",),
        folders=1,
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            # One column for each spec of the set: uint8, frames × bins, see songray/audio/spectrograms.py
            "mel128": pa.binary(),
            "linear257": pa.binary(),
            "mel128-8k": pa.binary(),
            "mel96": pa.binary(),
            "mfcc20-8k": pa.binary(),
            "chroma12": pa.binary(),
            "mel96-16k": pa.binary(),
            "seconds": pa.float64(),  # of decoded audio
            "missing_seconds": pa.float64(),  # of audio that the file announces and does not contain
            "error": pa.string(),
            "detail": pa.string(),
        },
    ),
    "factors": TableKind(
        job="factorize",
        key=("version", "track_key"),  # factors of different versions cannot be compared
        folders=1,
        columns={
            "version": pa.int64(),
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "playlists": pa.int64(),  # checksum of the playlists that were factorised
            "factors": pa.list_(pa.float32()),  # fixed size
        },
    ),
    "embeddings": TableKind(
        job="embed",
        key=("track_key",),
        indexed=(),
        folders=1,
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "embedding": pa.list_(pa.float32()),  # unit vector, fixed size
            "tags": pa.list_(pa.float16()),  # probabilities of the run's tags, in their order; or null
        },
    ),
    "maps": TableKind(
        job="project",
        key=("track_key",),
        indexed=(),
        folders=2,
        columns={
            "track_key": pa.int64(),
            "track_id": pa.string(),
            "x": pa.float32(),
            "y": pa.float32(),
            "cluster": pa.int16(),
        },
    ),
}
