"""All models on the same real music, as they come or after the same time of training: how good their
neighbours are, how fast they embed, what they were trained on, and the licence of their weights.

The music and the scores are those of bench_fusion: R-precision by artist, and the share of the first five
from the same package, which is a game; other clips of the same recording are left out. In brackets are
intervals of 95 % over resamples of the artists. Models that learn are trained on these very clips, without
their labels, as on a person's own collection; so is the mean, and for some the projection, of all vectors.
The weights of the fusion were settled on these clips, and the student's teacher is left to bench_distilled,
whose artists were not taught.

Environment: SONGRAY_BENCH_SECONDS, 30, of one processor for each training; SONGRAY_BENCH_MODELS, all;
SONGRAY_BENCH_RESULTS names a file of JSON lines, whose results are not measured again.

The row musly is that of Musly's method "timbre" (pip install pymusly), which has no vectors: of each pair of
clips it gives a distance. What is not symmetric in it is averaged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import bench_models
import numpy as np
import pytest
import torch
from bench_fusion import Music, cosines, joined
from bench_models import SECONDS, fit, spectrograms_of
from bench_models import Music as Training
from bench_pretrained import MUSIC, fastest, manifest
from tabulate import tabulate

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import Spectrogram
from songray.keys import track_key
from songray.learning.encoder import fit_encoder
from songray.learning.models import MODELS, LearningConfig
from songray.learning.models.base import Embedder
from songray.learning.windows import embed_clips, jackknife_clips
from songray.library import Row, Vectors
from songray.pipeline import MEMBERS

NAMES = [name for name in bench_models.NAMES if name != "factors"]  # which needs playlists
TIMED_CLIPS = 4
TRAINED_ON = {
    "musicnn-msd": "200,000 songs of the Million Song Dataset, with Last.fm's tags",
    "musicnn-mtt": "25,000 clips of MagnaTagATune, with their tags",
}
LICENCES = {"musicnn-msd": "ISC", "musicnn-mtt": "ISC"}


class Clips(Training):
    """The clips as what models learn from."""

    def __init__(self) -> None:
        rows = [
            {"track_key": track_key(row["file"], 0), "track_id": row["file"], "recording": row["recording"],
             "artist_ids": [row["artist"]] if row["artist"] else []}
            for row in manifest()
        ]  # fmt: skip
        super().__init__("music", rows, {}, {})
        torch.set_num_threads(1)
        with ProcessPoolExecutor(2) as pool:
            self.every = list(
                pool.map(spectrograms_of, [str(MUSIC / row["file"]) for row in manifest()], chunksize=8)
            )

    def spectrograms(self, spec: str) -> list[Spectrogram]:
        return [clip[spec] for clip in self.every]


@pytest.fixture(scope="module")
def clips() -> Clips:
    return Clips()


def measure(name: str, clips: Clips, labels: Music) -> tuple[Row, Vectors]:
    """A row of the results, and the vectors of all clips."""
    config = MODELS[name]()
    is_held = np.zeros(len(clips.rows), bool)
    model, trained = fit(config, clips, is_held, 0, SECONDS)
    spectrograms = clips.spectrograms(model.spec)
    pooled = jackknife_clips(model, spectrograms)
    vectors = fit_encoder(model, pooled).normalise(np.stack([clip[0] for clip in pooled]))
    learns = isinstance(config, LearningConfig) or model.is_fitted
    row = {
        "model": name,
        "trained on": TRAINED_ON.get(name, f"these clips, {trained['s']:.0f} s" if learns else "nothing"),
        "licence of weights": LICENCES.get(name, "–"),
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "numbers": vectors.shape[1],
        "clips/s": clips_per_second(model, spectrograms),
    }
    return row | scores_of(cosines(vectors), labels), vectors


def clips_per_second(model: Embedder, spectrograms: list[Spectrogram]) -> float:
    """From stored spectrograms, on one processor."""
    return TIMED_CLIPS / fastest(lambda: embed_clips(model, spectrograms[:TIMED_CLIPS]))


def scores_of(similarity: np.ndarray, labels: Music) -> Row:
    artist, package = labels.score(similarity)
    return {"artist, R-precision": labels.interval(artist), "package, p@5": labels.interval(package)}


def musly(labels: Music) -> Row:
    """Musly is given the samples that songray decodes; its style is that of all clips, as is the scale of the
    models."""
    import pymusly

    jukebox = pymusly.MuslyJukebox(method="timbre")
    sounds = [decode(str(MUSIC / row["file"]), Excerpt()).resampled(22050) for row in manifest()]
    started = time.process_time()
    tracks = [jukebox.track_from_audiodata(samples) for samples in sounds]
    seconds = time.process_time() - started
    jukebox.set_style(tracks)
    jukebox.add_tracks(list(enumerate(tracks)))
    pairs = list(enumerate(tracks))
    distances = np.array([jukebox.compute_similarity((n, track), pairs) for n, track in pairs])
    return {
        "model": "musly, timbre",
        "trained on": "nothing",
        "licence of weights": "–",
        "numbers": 0,
        "clips/s": len(tracks) / seconds,
    } | scores_of(-(distances + distances.T) / 2, labels)


def stored(results: Path) -> list[Row]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def test_quality(clips: Clips, tmp_path: Path) -> None:
    labels = Music()
    results = Path(os.environ.get("SONGRAY_BENCH_RESULTS", tmp_path / "results.jsonl"))
    members: dict[str, Vectors] = {}
    finished = {row["model"] for row in stored(results)}
    for name in NAMES:
        if name in finished and name not in MEMBERS:
            continue
        row, vectors = measure(name, clips, labels)
        members |= {name: vectors} if name in MEMBERS else {}
        if name not in finished:
            add(results, row)
    rows = stored(results)
    if set(members) == set(MEMBERS):
        fused = {"model": "fusion", "trained on": "its members", "licence of weights": "ISC"}
        speed = 1 / sum(1 / row["clips/s"] for row in rows if row["model"] in MEMBERS)
        vectors = joined(members, dict(MEMBERS))
        fused |= {"numbers": vectors.shape[1], "clips/s": speed} | scores_of(cosines(vectors), labels)
        rows.append(fused)
    if importlib.util.find_spec("pymusly"):
        rows.append(musly(labels))
    print(
        f"\n{len(clips.rows)} clips; clips/s on one processor, from stored spectrograms; musly from samples\n"
    )
    print(tabulate(rows, "keys", tablefmt="github", floatfmt=".1f"))


def add(results: Path, row: Row) -> None:
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)
