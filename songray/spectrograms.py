"""Reads previews, writes spectrograms: one decode a track, one column a spec.

A spectrogram is stored as bytes: uint8, time first, its bins a frame. Any tool reads it so:

    np.frombuffer(row["mel128"], np.uint8).reshape(-1, 128) * (80 / 255) - 80   # dB, (frames, bins)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import librosa
import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from songray.audio import AudioError, Excerpt, Samples, decode
from songray.library import TABLES, Library
from songray.stages import Summary, fill

Spectrogram = NDArray[np.uint8]  # (frames, bins)

PASSING = {"missing"}  # of AudioError: a disk may be mounted again
TOP_DB = 80.0  # the range that is stored, below the loudest bin


@dataclass(frozen=True)
class Spec:
    """A kind of spectrogram, in librosa's terms."""

    rate: int  # Hz
    n_fft: int  # samples
    hop_length: int  # samples
    n_mels: int


SPECS = {"mel128": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128)}


@dataclass(frozen=True)
class TransformConfig:
    set: str = "default"
    """Name of the set of spectrograms."""
    excerpt: Excerpt = field(default_factory=Excerpt)
    rows_per_file: int = 1024
    """The most tracks that are finished together, as one file; fewer where there is little to do."""
    max_failed_share: float = 0.5
    """Exit with an error when more than this share of the tracks of a run fails."""


def transform(library: Library, config: TransformConfig) -> Summary:
    """Compute the spectrograms of the previews that have none yet."""
    previews, output = library.table("previews"), library.table("spectrograms", config.set)
    specs = {name: asdict(spec) for name, spec in SPECS.items()}
    output.claim({"specs": specs, "excerpt": asdict(config.excerpt)})

    def plan(rows: ray.data.Dataset, tally: ray.actor.ActorHandle) -> ray.data.Dataset:
        batch = partial(_transform_and_count, excerpt=config.excerpt, tally=tally)
        return rows.map_batches(batch, batch_size=16, batch_format="pyarrow")

    summary = fill("transform", previews, output, plan, config.rows_per_file)
    summary.check(config.max_failed_share)
    return summary


def _transform_and_count(previews: pa.Table, excerpt: Excerpt, tally: ray.actor.ActorHandle) -> pa.Table:
    rows, again = transform_batch(previews, excerpt)
    tally.add.remote(rows.num_rows, again)
    return rows


def transform_batch(previews: pa.Table, excerpt: Excerpt) -> tuple[pa.Table, list[str]]:
    """Rows of previews → rows of spectrograms, with an error where one cannot be decoded; and the classes
    of the failures that may pass (a file that is not there now), which get no row."""
    rows = [_transform_row(row, excerpt) for row in previews.to_pylist()]
    final = [row for row in rows if row.get("error") not in PASSING]
    table = pa.Table.from_pylist(final, pa.schema(TABLES["spectrograms"].columns))
    return table, [row["error"] for row in rows if row.get("error") in PASSING]


def _transform_row(preview: dict[str, Any], excerpt: Excerpt) -> dict[str, Any]:
    row: dict[str, Any] = {"track_key": preview["track_key"], "track_id": preview["track_id"]}
    try:
        sound = preview["audio"] if preview["audio"] is not None else preview["location"]
        for name, spec in SPECS.items():
            samples = decode(sound, spec.rate, excerpt)
            row[name] = quantise(compute(samples, spec)).tobytes()
            row["seconds"] = len(samples) / spec.rate
    except AudioError as error:
        row |= {"error": error.kind, "detail": str(error)}
    return row


def compute(samples: Samples, spec: Spec) -> NDArray[np.float32]:
    """dB relative to the loudest bin, −80…0, (frames, bins): librosa's melspectrogram, power_to_db."""
    power = librosa.feature.melspectrogram(
        y=samples, sr=spec.rate, n_fft=spec.n_fft, hop_length=spec.hop_length, n_mels=spec.n_mels
    )
    decibels: NDArray[np.float32] = librosa.power_to_db(power, ref=np.max, top_db=TOP_DB)
    return decibels.T


def quantise(decibels: NDArray[np.float32]) -> Spectrogram:
    """dB −80…0 → 0…255, the nearest step of 0.31 dB."""
    levels: Spectrogram = np.rint((decibels + TOP_DB) * (255 / TOP_DB)).astype(np.uint8)
    return levels


def stored(column: bytes, spec: Spec) -> Spectrogram:
    """What a cell of the table holds, (frames, bins), without a copy."""
    return np.frombuffer(column, np.uint8).reshape(-1, spec.n_mels)
