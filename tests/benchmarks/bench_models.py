"""All models on the same tracks, for the same time: precision of retrieval, also for held-out artists.

Environment, with the values of the full table in brackets: SONGRAY_BENCH_SECONDS for each model and seed, 30
(300), of processor time, on which other programs have no effect; SONGRAY_BENCH_SEEDS, 1 (3);
SONGRAY_BENCH_SONGS of the synthetic catalogue, 0: real clips only (1000); SONGRAY_BENCH_MODELS, all.
The full table takes about 4 hours of one processor. SONGRAY_BENCH_RESULTS names a file of JSON lines, whose
results are not measured again: a benchmark that was interrupted continues, and processes with different
models may share the file. SONGRAY_BENCH_CACHE names a folder that keeps the spectrograms (1.1 GB for 1,000
songs).

Each model is trained on either collection separately: the clips are real music, but only 35 of them are in
the training part; of the synthetic songs hundreds are, and their artists are not those held out. Training is
songray's loop without Ray.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tabulate import tabulate

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.inputs import compute_inputs
from songray.audio.spectrograms import SPECS, Spectrogram, from_bytes
from songray.catalogue.sources.synthetic import synthesis
from songray.catalogue.sources.synthetic.songs import song_of
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.evaluation.clusters import cluster
from songray.evaluation.metrics import LABELS, nearest
from songray.keys import track_key
from songray.learning.encoder import fit_encoder
from songray.learning.factorize import FactorizeConfig, factorize_entries
from songray.learning.loop import Limits, Metrics, build_learner, build_model, run_epoch, validate
from songray.learning.models import MODELS, LearningConfig, ModelConfig
from songray.learning.models.base import Batch, Embedder
from songray.learning.split import Split, split
from songray.learning.train import declared
from songray.learning.windows import Clips, jackknife_clips, learning_batches, tile, to_device, to_float
from songray.library import Row
from songray.tables import TABLES

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "30"))
SEEDS = int(os.environ.get("SONGRAY_BENCH_SEEDS", "1"))
SONGS = int(os.environ.get("SONGRAY_BENCH_SONGS", "0"))
ALONE = [name for name in MODELS if name not in ("distilled", "transformers")]  # that need no other model
NAMES = os.environ.get("SONGRAY_BENCH_MODELS", " ".join(ALONE)).split()
HELD_OUT = 0.3  # share of the artists
IDENTITY = ("track_key", "track_id", "artist_ids", "recording", "isrc")
CPU = torch.device("cpu")
Spectrograms = dict[str, Spectrogram]  # of one track, by spec


@dataclass(frozen=True)
class Music:
    """Tracks with their metadata, and the files with their spectrograms, by spec."""

    kind: str
    rows: list[Row]
    files: dict[str, Path]
    factors: dict[str, np.ndarray]  # by track_id, of the tracks in playlists

    def spectrograms(self, spec: str) -> list[Spectrogram]:
        with np.load(self.files[spec]) as stored:
            return np.split(stored["cells"], stored["ends"])

    def clips(self, model: Embedder, selected: np.ndarray) -> Clips:
        """The selected tracks that have the target of the model."""
        if model.target:
            selected = selected & [row["track_id"] in self.factors for row in self.rows]
        positions = np.flatnonzero(selected)
        rows = [self.rows[position] for position in positions]
        keys = np.array([row["track_key"] for row in rows])
        targets = [self.factors[row["track_id"]] for row in rows] if model.target else None
        every = self.spectrograms(model.spec)
        recordings = np.array([self.parts.same_recording.get(key, key) for key in keys.tolist()])
        spectrograms = [every[position] for position in positions]
        return Clips(keys, recordings, spectrograms, np.stack(targets) if targets else None)

    @cached_property
    def parts(self) -> Split:
        columns = {key: TABLES["tracks"].columns[key] for key in IDENTITY}
        return split(pa.Table.from_pylist(self.rows, pa.schema(columns)), HELD_OUT, seed=1)


@cache
def specs() -> list[str]:
    """The input specs of all models."""
    return sorted({declared(MODELS[name]()).spec for name in ALONE})


def spectrograms_of(sound: bytes | str) -> Spectrograms:
    cells = compute_inputs(decode(sound, Excerpt()), specs())
    return {name: from_bytes(cell, SPECS[name]) for name, cell in cells.items()}


def cached(
    kind: str, count: int, folder: Path, compute_all: Callable[[], list[Spectrograms]]
) -> dict[str, Path]:
    """The files with the spectrograms of all tracks, which are computed where a file is missing."""
    files = {spec: folder / f"{kind}-{count}-{spec}.npz" for spec in specs()}
    if not all(file.exists() for file in files.values()):
        tracks = compute_all()
        for spec, file in files.items():
            cells = [spectrograms[spec] for spectrograms in tracks]
            ends = np.cumsum([*map(len, cells)])[:-1]
            np.savez(folder / "unfinished.npz", cells=np.concatenate(cells), ends=ends)
            (folder / "unfinished.npz").rename(file)
    return files


def real_music(clips: Path, folder: Path) -> Music:
    with (clips / "manifest.csv").open() as file:
        entries = list(csv.DictReader(file))
    rows = [
        {"track_key": track_key(entry["file"], 0), "track_id": entry["file"], "recording": entry["track_id"],
         "artist_ids": [entry["artist"]], "genres": []}
        for entry in entries
    ]  # fmt: skip

    def compute_all() -> list[Spectrograms]:
        return [spectrograms_of(str(clips / row["track_id"])) for row in rows]

    return Music("clips", rows, cached("clips", len(rows), folder, compute_all), {})


def synthetic_music(folder: Path) -> Music:
    source = SyntheticSource(songs=SONGS)
    contents = [piece for _, piece in source.read(list(source.pages()))]
    tracks = [track for piece in contents for track in piece.tracks]
    rows = [
        {"track_key": track_key(track.track_id, 0), "track_id": track.track_id,
         "recording": track.recording, "artist_ids": track.artist_ids, "genres": track.genres}
        for track in tracks
    ]  # fmt: skip
    entries = [vars(entry) for piece in contents for entry in piece.playlist_entries]
    ids, factors = factorize_entries(pa.Table.from_pylist(entries), FactorizeConfig(min_playlists=1))
    files = cached("synthetic", SONGS, folder, render_all)
    return Music("synthetic", rows, files, dict(zip(ids.tolist(), factors, strict=True)))


def render_all() -> list[Spectrograms]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(render, range(SONGS), chunksize=8))


def render(number: int) -> Spectrograms:
    return spectrograms_of(synthesis.render(0, song_of(0, number)))


def measure(config: ModelConfig, music: Music, seed: int, seconds: float) -> Row:
    """The scores of a model after its time: retrieval among all tracks, for all queries and for those whose
    artist is held out of training."""
    parts = music.parts
    held = np.isin([row["track_key"] for row in music.rows], parts.validation)
    model, scores = fit(config, music, held, seed, seconds)
    clips = jackknife_clips(model, music.spectrograms(model.spec))
    encoder = fit_encoder(model, [clip for clip, is_held in zip(clips, held, strict=True) if not is_held])
    vectors = encoder.normalise(np.stack([clip[0] for clip in clips]))
    ranked = nearest(vectors, len(vectors) - 1)
    for label in LABELS:
        for group, is_query in (("", np.ones_like(held)), (" held out", held)):
            scores |= retrieval(ranked, music.rows, label, group, is_query)
    clusters = cluster(vectors, [row["genres"] for row in music.rows])
    if clusters:
        scores |= {"V": clusters.v_measure, "AMI": clusters.mutual_information}
    parameters = sum(weights.numel() for weights in model.parameters())
    return scores | {"dimension": vectors.shape[1], "parameters": parameters}


def fit(
    config: ModelConfig, music: Music, is_held: np.ndarray, seed: int, seconds: float
) -> tuple[Embedder, Row]:
    """The model after its time, the seconds and steps of its training, and, where it reconstructs its input,
    the share of the variance of held-out windows that it leaves unexplained."""
    model = build_model(config, seed)
    train, held = music.clips(model, ~is_held), music.clips(model, is_held)
    began = time.process_time()
    if not isinstance(config, LearningConfig):
        if model.is_fitted:
            model.fit(to_float(torch.tensor(tile(clip, model.frames))) for clip in train.spectrograms)
        measured = {"s": time.process_time() - began, "steps": 0}
        return model.eval(), measured | unexplained_by_components(model, held)
    torch.manual_seed(seed)
    learner = build_learner(model, config)
    count = max(1, config.batch_size // model.views)
    per_epoch = max(1, len(train.keys) * (model.windows_per_clip // model.views) // count)
    limits = Limits(config.epochs * per_epoch, seconds, time.process_time)
    curve: Metrics = {}
    while curve.get("seconds", 0) < seconds and curve.get("epoch", 0) < config.epochs:
        curve = run_epoch(learner, batches(train, model, count, seed, curve), limits, curve)
    measured = {"s": curve["seconds"], "steps": learner.steps}
    validation = batches(held, model, count, 0, {"epoch": -1})
    metrics = validate(learner, validation) if held.keys.size else {}
    return model.eval(), measured | {"unexplained": metrics.get("validation_unexplained")}


def batches(clips: Clips, model: Embedder, count: int, seed: int, previous: Metrics) -> Iterator[Batch]:
    for batch in learning_batches(clips, model, count, seed, int(previous.get("epoch", 0)) + 1):
        yield to_device(batch, CPU)


def unexplained_by_components(model: Embedder, held: Clips) -> Row:
    if not (model.is_fitted and held.keys.size):
        return {}
    windows = to_float(torch.tensor(np.concatenate([tile(clip, model.frames) for clip in held.spectrograms])))
    error = (model.decode(model.embed(windows)) - windows).square().mean()
    return {"unexplained": (error / windows.var(correction=0)).item()}


def retrieval(ranked: np.ndarray, rows: list[Row], label: str, group: str, is_query: np.ndarray) -> Row:
    """Precision of the nearest neighbour, and mean average precision, of the queries that share a label."""
    labels = [LABELS[label](row) for row in rows]
    first, average = [], []
    for number in np.flatnonzero(is_query):
        hits = np.array([bool(labels[number] & labels[other]) for other in ranked[number]])
        if hits.any():
            first.append(hits[0])
            average.append((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
    return {f"{label}{group}": [float(np.mean(first)), float(np.mean(average))]} if first else {}


@pytest.mark.parametrize("kind", ["clips", "synthetic"])
def test_models(kind: str, clips: Path, tmp_path: Path) -> None:
    if kind == "synthetic" and not SONGS:
        pytest.skip("SONGRAY_BENCH_SONGS is 0")
    torch.set_num_threads(1)
    folder = Path(os.environ.get("SONGRAY_BENCH_CACHE", tmp_path))
    results = Path(os.environ.get("SONGRAY_BENCH_RESULTS", tmp_path / "results.jsonl"))
    music = real_music(clips, folder) if kind == "clips" else synthetic_music(folder)
    for name, seed in runs_of(music):
        config = MODELS[name]()
        identity = {"kind": kind, "tracks": len(music.rows), "budget": SECONDS, "model": name, "seed": seed}
        identity |= {"config": str(config)}
        if any(identity.items() <= row.items() for row in stored_results(results)):
            continue
        row = identity | measure(config, music, seed, SECONDS)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{kind}, seed {seed}", *table([row])[0], flush=True)
    collection = {"kind": kind, "tracks": len(music.rows), "budget": SECONDS}
    rows = [row for row in stored_results(results) if collection.items() <= row.items()]
    print(f"\n{kind}: {len(music.rows)} tracks; {SECONDS:g} s of one processor a model and seed; means over")
    print("seeds; precision of the nearest / mAP, among all tracks, for queries by all artists and by those")
    print("held out of training\n")
    print(tabulate(table(rows), HEADS, tablefmt="github", floatfmt=".3f"))


def runs_of(music: Music) -> Iterator[tuple[str, int]]:
    """Models and seeds: all models with the first seed, then those that depend on the seed with the next."""
    for seed in range(SEEDS):
        for name in NAMES:
            depends_on_seed = isinstance(MODELS[name](), LearningConfig) or name == "random"
            if (depends_on_seed or seed == 0) and (name != "factors" or music.factors):
                yield name, seed


def stored_results(results: Path) -> list[Row]:
    """The stored results of models with their present options."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return [row for row in rows if row["config"] == str(MODELS[row["model"]]())]


LABELLED = [f"{label}{group}" for label in LABELS for group in ("", " held out")]
COUNTS = ["dimension", "parameters", "s", "steps"]
HEADS = ["model", "seeds", *COUNTS, "unexplained", *LABELLED, "V", "AMI"]


def table(rows: Iterable[Row]) -> list[list[object]]:
    """One row a model, in the order of MODELS."""
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_model[row["model"]].append(row)
    return [
        [name, len(results), *(mean_of(results, head) for head in HEADS[2:])]
        for name in MODELS
        if (results := by_model[name])
    ]


def mean_of(rows: list[Row], head: str) -> object:
    values = [row[head] for row in rows if row.get(head) is not None]
    if not values:
        return None
    mean = np.mean(values, axis=0)
    if head in LABELLED:
        return f"{mean[0]:.2f}/{mean[1]:.2f}"
    return round(mean) if head in COUNTS else float(mean)
