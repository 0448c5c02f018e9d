"""All models on the same tracks, for the same time: what does each make of music, also of artists that it
never heard?

Environment, with what the full table takes in brackets: SONGRAY_BENCH_SECONDS a model and seed, 30 (300), of
one processor, so that other programs on the machine cost nobody steps; SONGRAY_BENCH_SEEDS, 1 (3);
SONGRAY_BENCH_SONGS of the synthetic catalogue, 0: real clips alone (1000); SONGRAY_BENCH_MODELS, all.
The full table takes about 4 hours of one processor. SONGRAY_BENCH_RESULTS names a file of JSON lines: what
it has is not measured again, so that a bench that was cut off goes on, and several may share it that have
different models.
SONGRAY_BENCH_CACHE names a folder that keeps the spectrograms (1.1 GB for 1,000 songs).

Each model learns on either collection by itself: the clips show real music, on which a model can learn little
from 35 tracks; the synthetic songs show what it learns from hundreds of tracks of artists that it never hears
again. Training is songray's loop without Ray.
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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tabulate import tabulate

from songray.audio.decode import Excerpt, read
from songray.audio.transform import SPECS, Spectrogram, compute, quantise
from songray.catalogue.sources.synthetic import synthesis
from songray.catalogue.sources.synthetic.source import SyntheticSource, song_of
from songray.evaluation.evaluate import LABELS, cluster, nearest
from songray.learning import runs
from songray.learning.factorize import FactorizeConfig, factorize_entries
from songray.learning.loop import Limits, Metrics, learner, run_epoch, seeded, validate
from songray.learning.models import MODELS
from songray.learning.models.base import Batch, Embedder, LearningConfig, ModelConfig
from songray.learning.windows import Clips, Split, jackknifed, learning_batches, placed, scaled, split, tile
from songray.library import TABLES, track_key

SECONDS = float(os.environ.get("SONGRAY_BENCH_SECONDS", "30"))
SEEDS = int(os.environ.get("SONGRAY_BENCH_SEEDS", "1"))
SONGS = int(os.environ.get("SONGRAY_BENCH_SONGS", "0"))
NAMES = os.environ.get("SONGRAY_BENCH_MODELS", " ".join(MODELS)).split()
HELD_OUT = 0.3  # share of the artists
IDENTITY = ("track_key", "track_id", "artist_ids", "recording", "isrc")
CPU = torch.device("cpu")

Row = dict[str, Any]
Planes = dict[str, Spectrogram]  # of one track, by spec


@dataclass(frozen=True)
class Music:
    """Tracks with what is known of them, and the files that hold their spectrograms, by spec."""

    kind: str
    rows: list[Row]
    files: dict[str, Path]
    factors: dict[str, np.ndarray]  # by track_id, where playlists tell them

    def spectrograms(self, spec: str) -> list[Spectrogram]:
        with np.load(self.files[spec]) as kept:
            return np.split(kept["cells"], kept["ends"])

    def clips(self, model: Embedder, chosen: np.ndarray) -> Clips:
        if model.target:
            chosen = chosen & [row["track_id"] in self.factors for row in self.rows]
        places = np.flatnonzero(chosen)
        keys = np.array([self.rows[place]["track_key"] for place in places])
        targets = [self.factors[self.rows[place]["track_id"]] for place in places] if model.target else None
        several = self.spectrograms(model.spec)
        recordings = np.array([self.parts.same_recording.get(key, key) for key in keys.tolist()])
        chosen = [several[place] for place in places]
        return Clips(keys, recordings, chosen, np.stack(targets) if targets else None)

    @cached_property
    def parts(self) -> Split:
        columns = {key: TABLES["tracks"].columns[key] for key in IDENTITY}
        return split(pa.Table.from_pylist(self.rows, pa.schema(columns)), HELD_OUT, seed=1)


def specs() -> list[str]:
    return sorted({seeded(config(), 0).spec for config in MODELS.values()})


def planes_of(sound: bytes | str) -> Planes:
    plane = compute(read(sound, Excerpt()).resampled(22050), specs())
    return {name: quantise(plane[name], SPECS[name]) for name in specs()}


def kept(kind: str, count: int, folder: Path, computed: Callable[[], list[Planes]]) -> dict[str, Path]:
    """The files with the spectrograms of so many tracks, which are computed where any is missing."""
    files = {spec: folder / f"{kind}-{count}-{spec}.npz" for spec in specs()}
    if not all(file.exists() for file in files.values()):
        found = computed()
        for spec, file in files.items():
            cells = [planes[spec] for planes in found]
            np.savez(
                folder / "partly.npz", cells=np.concatenate(cells), ends=np.cumsum([*map(len, cells)])[:-1]
            )
            (folder / "partly.npz").rename(file)
    return files


def real_music(clips: Path, folder: Path) -> Music:
    with (clips / "manifest.csv").open() as file:
        described = list(csv.DictReader(file))
    rows = [
        {"track_key": track_key(one["file"], 0), "track_id": one["file"], "recording": one["track_id"],
         "artist_ids": [one["artist"]], "genres": []}
        for one in described
    ]  # fmt: skip

    def computed() -> list[Planes]:
        return [planes_of(str(clips / row["track_id"])) for row in rows]

    return Music("clips", rows, kept("clips", len(rows), folder, computed), {})


def synthetic_music(folder: Path) -> Music:
    source = SyntheticSource(songs=SONGS)
    contents = [found for page in source.pages() for found in source.read([page])]
    tracks = [track for _, found in contents for track in found.tracks]
    rows = [
        {"track_key": track_key(one.track_id, 0), "track_id": one.track_id, "recording": one.recording,
         "artist_ids": one.artist_ids, "genres": one.genres}
        for one in tracks
    ]  # fmt: skip
    entries = [vars(entry) for _, found in contents for entry in found.playlist_entries]
    ids, factors = factorize_entries(pa.Table.from_pylist(entries), FactorizeConfig(min_playlists=1))
    files = kept("synthetic", SONGS, folder, all_rendered)
    return Music("synthetic", rows, files, dict(zip(ids.tolist(), factors, strict=True)))


def all_rendered() -> list[Planes]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(rendered, range(SONGS), chunksize=8))


def rendered(number: int) -> Planes:
    return planes_of(synthesis.render(0, song_of(0, number)))


def judged(config: ModelConfig, music: Music, seed: int, seconds: float) -> Row:
    """What a model makes of music after its time: retrieval among all tracks, for queries of all and of
    those whose artist was held out of training."""
    parts = music.parts
    held = np.isin([row["track_key"] for row in music.rows], parts.validation)
    model, measured = fit(config, music, held, seed, seconds)
    several = jackknifed(model, music.spectrograms(model.spec))
    encoder = runs.fitted(model, [clip for clip, is_held in zip(several, held, strict=True) if not is_held])
    vectors = encoder.unit(np.stack([clip[0] for clip in several]))
    ranked = nearest(vectors, len(vectors) - 1)
    for label in LABELS:
        for who, asked in (("", np.ones_like(held)), (" held out", held)):
            measured |= retrieval(ranked, music.rows, label, who, asked)
    clusters = cluster(vectors, [row["genres"] for row in music.rows])
    if clusters:
        measured |= {"V": clusters.v_measure, "AMI": clusters.mutual_information}
    parameters = sum(weights.numel() for weights in model.parameters())
    return measured | {"dimension": vectors.shape[1], "parameters": parameters}


def fit(
    config: ModelConfig, music: Music, is_held: np.ndarray, seed: int, seconds: float
) -> tuple[Embedder, Row]:
    """The model after its time, the seconds and steps that it took, and the unexplained share of held-out
    windows, where it draws them again."""
    model = seeded(config, seed)
    train, held = music.clips(model, ~is_held), music.clips(model, is_held)
    began = time.process_time()
    if not isinstance(config, LearningConfig):
        if model.fitted:
            model.fit(scaled(torch.tensor(tile(clip, model.frames))) for clip in train.spectrograms)
        measured = {"s": time.process_time() - began, "steps": 0}
        return model.eval(), measured | unexplained_by_components(model, held)
    torch.manual_seed(seed)
    learns = learner(model, config)
    count = max(1, config.batch_size // model.views)
    per_epoch = max(1, len(train.keys) * (model.windows_per_clip // model.views) // count)
    limits = Limits(config.epochs * per_epoch, seconds, time.process_time)
    curve: Metrics = {}
    while curve.get("seconds", 0) < seconds and curve.get("epoch", 0) < config.epochs:
        curve = run_epoch(learns, batches(train, model, count, seed, curve), limits, curve)
    found = validate(learns, (placed(one, CPU) for one in learning_batches(held, model, count, 0, 0)))
    measured = {"s": curve["seconds"], "steps": learns.steps}
    return model.eval(), measured | {"unexplained": found.get("validation_unexplained")}


def batches(clips: Clips, model: Embedder, count: int, seed: int, before: Metrics) -> Iterator[Batch]:
    for batch in learning_batches(clips, model, count, seed, int(before.get("epoch", 0)) + 1):
        yield placed(batch, CPU)


def unexplained_by_components(model: Embedder, held: Clips) -> Row:
    if not model.fitted:
        return {}
    windows = scaled(torch.tensor(np.concatenate([tile(clip, model.frames) for clip in held.spectrograms])))
    error = (model.draw(model.embed(windows)) - windows).square().mean()
    return {"unexplained": (error / windows.var(correction=0)).item()}


def retrieval(ranked: np.ndarray, rows: list[Row], label: str, who: str, asked: np.ndarray) -> Row:
    """Precision of the nearest, and mean average precision, of queries that share a label."""
    labels = [LABELS[label](row) for row in rows]
    first, average = [], []
    for number in np.flatnonzero(asked):
        hits = np.array([bool(labels[number] & labels[other]) for other in ranked[number]])
        if hits.any():
            first.append(hits[0])
            average.append((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
    return {f"{label}{who}": [float(np.mean(first)), float(np.mean(average))]} if first else {}


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
        if any(identity.items() <= row.items() for row in written(results)):
            continue
        row = identity | judged(config, music, seed, SECONDS)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{kind}, seed {seed}", *table([row])[0], flush=True)
    mine = {"kind": kind, "tracks": len(music.rows), "budget": SECONDS}
    rows = [row for row in written(results) if mine.items() <= row.items()]
    print(f"\n{kind}: {len(music.rows)} tracks; {SECONDS:g} s of one processor a model and seed; means over")
    print("seeds; precision of the nearest / mAP, among all tracks, for queries by all artists and by those")
    print("held out of training\n")
    print(tabulate(table(rows), HEADS, tablefmt="github", floatfmt=".3f"))


def runs_of(music: Music) -> Iterator[tuple[str, int]]:
    """Every model with its first seed comes before any with its second."""
    for seed in range(SEEDS):
        for name in NAMES:
            is_drawn = isinstance(MODELS[name](), LearningConfig) or name == "random"
            if (is_drawn or seed == 0) and (name != "factors" or music.factors):
                yield name, seed


def written(results: Path) -> list[Row]:
    """The rows so far of models as they are now."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return [row for row in rows if row["config"] == str(MODELS[row["model"]]())]


LABELLED = [f"{label}{who}" for label in LABELS for who in ("", " held out")]
COUNTS = ["dimension", "parameters", "s", "steps"]
HEADS = ["model", "seeds", *COUNTS, "unexplained", *LABELLED, "V", "AMI"]


def table(rows: Iterable[Row]) -> list[list[object]]:
    """One line a model, in the order of MODELS."""
    of: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of[row["model"]].append(row)
    return [
        [name, len(of[name]), *(mean_of(of[name], head) for head in HEADS[2:])] for name in MODELS if of[name]
    ]


def mean_of(rows: list[Row], head: str) -> object:
    values = [row[head] for row in rows if row.get(head) is not None]
    if not values:
        return None
    mean = np.mean(values, axis=0)
    if head in LABELLED:
        return f"{mean[0]:.2f}/{mean[1]:.2f}"
    return round(mean) if head in COUNTS else float(mean)
