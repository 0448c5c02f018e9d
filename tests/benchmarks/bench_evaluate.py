"""The time and the memory of a report, step by step, on one run of many tracks.

The vectors lie around the centres of artists, and those around the centres of 20 genres; a playlist has 20
tracks of one genre. Robustness is left out, since it takes audio.

Environment: SONGRAY_BENCH_TRACKS, 100000; SONGRAY_BENCH_SAMPLE, as many.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.keys import track_key
from songray.learning import encoder
from songray.learning.encoder import ModelEncoder
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.runs import Run
from songray.library import Library

TRACKS = int(os.environ.get("SONGRAY_BENCH_TRACKS", 100_000))
SAMPLE = int(os.environ.get("SONGRAY_BENCH_SAMPLE", TRACKS))
DIMENSION, GENRES, TRACKS_PER_ARTIST = 256, 20, 10
PLAYLISTS, PLAYLIST_TRACKS = 20_000, 20
FILE_TRACKS = 50_000


def fill(library: Library) -> None:
    random = np.random.default_rng(0)
    genres = random.normal(size=(GENRES, DIMENSION)).astype(np.float32)
    artists = TRACKS // TRACKS_PER_ARTIST
    genre_of = random.integers(0, GENRES, artists)
    centres = genres[genre_of] + 1.5 * random.normal(size=(artists, DIMENSION)).astype(np.float32)
    run = Run("constructed", "mfcc", {}, {}, "default", {}, "", {}, {}, [])
    model = build(MODELS["mfcc"]())  # figures look for its decoder
    encoder.save(library, run, ModelEncoder(model, np.zeros(40, np.float32), np.ones(40, np.float32)))
    tracks, embeddings = library.table("tracks"), library.table("embeddings", "constructed")
    for start in range(0, TRACKS, FILE_TRACKS):
        numbers = np.arange(start, min(start + FILE_TRACKS, TRACKS))
        ids = [f"t:{number}" for number in numbers]
        keys = [track_key(track_id, 0) for track_id in ids]
        artist = numbers % artists
        rows = [
            {"track_key": key, "track_id": track_id, "crawl": 1, "title": track_id,
             "artist_ids": [f"a:{own}"], "artist_names": [f"Artist {own}"],
             "album_id": f"b:{own}-{number // artists // 5}",
             "genres": [f"genre {genre_of[own]}"], "release_date": str(1960 + own % 60)}
            for key, track_id, own, number in zip(keys, ids, artist.tolist(), numbers.tolist(), strict=True)
        ]  # fmt: skip
        tracks.append(pa.Table.from_pylist(rows, tracks.schema()), f"{start:09d}")
        noise = random.normal(size=(len(numbers), DIMENSION)).astype(np.float32)
        vectors = centres[artist] + 1.5 * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIMENSION)
        table = pa.table({"track_key": keys, "track_id": ids, "embedding": column})
        embeddings.append(table, f"{start:09d}")
    _fill_playlists(library, genre_of[np.arange(TRACKS) % artists], random)


def _fill_playlists(library: Library, genre_of: np.ndarray, random: np.random.Generator) -> None:
    by_genre = [np.flatnonzero(genre_of == genre) for genre in range(GENRES)]
    chosen = [random.choice(by_genre[number % GENRES], PLAYLIST_TRACKS) for number in range(PLAYLISTS)]
    count = PLAYLISTS * PLAYLIST_TRACKS
    table = library.table("playlists")
    columns = {
        "playlist_id": [f"p:{number}" for number in range(PLAYLISTS) for _ in range(PLAYLIST_TRACKS)],
        "playlist": ["P"] * count,
        "position": np.tile(np.arange(PLAYLIST_TRACKS, dtype=np.int32), PLAYLISTS),
        "crawl": np.ones(count, np.int64),
        "version": ["v"] * count,
        "track_id": [f"t:{track}" for track in np.concatenate(chosen)],
    }
    table.append(pa.table(columns).cast(table.schema()), "000001")


def test_report(tmp_path: Path) -> None:
    library = Library.open(str(tmp_path / "library"))
    fill(library)
    output, started = tmp_path / "report", time.monotonic()
    parts = ("retrieval", "probes", "clusters", "listeners", "space", "figures")
    evaluation = evaluate(library, EvaluateConfig(parts=parts, sample=SAMPLE, output=str(output)))
    seconds = time.monotonic() - started
    steps = json.loads((output / "report.json").read_text())["steps"]
    print(f"\n{TRACKS:,} tracks × {DIMENSION}, {evaluation.tracks:,} compared: {seconds:.0f} s in all")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows = [[step["run"], step["name"], step["seconds"], step["peak_gigabytes"]] for step in steps]
    rows.append(["all runs", "figures, and all else", seconds - sum(row[2] for row in rows), peak])
    print(tabulate(rows, ["run", "step", "seconds", "peak memory so far, GB"], "github", floatfmt=".1f"))
