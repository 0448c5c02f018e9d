"""Reads previews, writes spectrograms: one decode a track, one column a spec.

A spectrogram is stored as bytes: uint8, time first, its bins a frame. Any tool reads it so:

    np.frombuffer(row["mel128"], np.uint8).reshape(-1, 128) * (80 / 255) - 80   # dB, (frames, bins)
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import librosa.filters
import numpy as np
import pyarrow as pa
import ray.data
import scipy.fft
from numpy.typing import NDArray

from songray.audio.decode import Excerpt, Samples, read
from songray.errors import AudioError
from songray.library import TABLES, Library
from songray.stages import Summary, fill

Spectrogram = NDArray[np.uint8]  # (frames, bins)
Plane = NDArray[np.float32]  # (frames, bins), before it is stored

KEYS = ["track_key", "track_id"]
BATCH_ROWS = 32
PASSING = {"missing"}  # of AudioError: a disk may be mounted again
TOP_DB = 80.0  # the range that is kept, below the loudest bin
AMIN = 1e-10  # power that counts as none
BLOCK_FRAMES = 64  # computed at a time: they stay in the processor's cache
BAND_BINS = 32  # neighbours in a filter bank, multiplied by what they have in common


@dataclass(frozen=True)
class Spec:
    """A kind of spectrogram, in librosa's terms: a power spectrogram, its mel bands where `n_mels` is
    given, in dB; where `n_mfcc` is given, cepstra of these; where `n_chroma` is given, a chromagram."""

    rate: int  # Hz
    n_fft: int  # samples
    hop_length: int  # samples
    n_mels: int = 0
    fmax: float | None = None  # Hz, of the mel bands; half the rate by default
    n_mfcc: int = 0
    n_chroma: int = 0
    version: int = 1  # raised when other bytes come out of the same sound

    @property
    def bins(self) -> int:
        return self.n_mfcc or self.n_chroma or self.n_mels or 1 + self.n_fft // 2

    @property
    def range(self) -> tuple[float, float]:
        """What the bytes 0 and 255 stand for: nothing lies outside."""
        if self.n_chroma:
            return 0.0, 1.0
        if self.n_mfcc:  # n_mels bands of −TOP_DB…0 through an orthonormal cosine transform
            return -TOP_DB * self.n_mels**0.5, TOP_DB * (2 * self.n_mels) ** 0.5 / np.pi * 1.001
        return -TOP_DB, 0.0


SPECS = {
    "mel128": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128),
    "linear257": Spec(rate=22050, n_fft=512, hop_length=256),
    "mel128-8k": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128, fmax=8000),
    "mel96": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=96),
    "mfcc20-8k": Spec(rate=22050, n_fft=2048, hop_length=512, n_mels=128, fmax=8000, n_mfcc=20),
    "chroma12": Spec(rate=22050, n_fft=2048, hop_length=512, n_chroma=12),
}


@dataclass(frozen=True)
class TransformConfig:
    set: str = "default"
    """Name of the set of spectrograms."""
    specs: tuple[str, ...] = ("mel128",)
    """What to compute of each track, all from one decoding: mel128, linear257, mel128-8k, mel96, mfcc20-8k,
    chroma12."""
    excerpt_seconds: float = Excerpt.seconds
    """The most that is listened to of a track, in seconds."""
    excerpt_at: str = Excerpt.at
    """Where in it: middle, start, or spread:n for n pieces that are joined."""
    seconds_per_track: float = 60.0
    """A decoder that takes longer is given up."""
    rows_per_file: int = 256
    """The most tracks that are finished together, as one file; fewer where there is little to do."""
    max_failed_share: float = 0.5
    """Exit with an error when more than this share of the tracks of a run fails."""

    def __post_init__(self) -> None:
        if not self.specs or not set(self.specs) <= set(SPECS):
            raise ValueError(f"--specs {' '.join(self.specs)}: choose from {', '.join(SPECS)}")
        if self.seconds_per_track <= 0:
            raise ValueError(f"seconds_per_track is {self.seconds_per_track}: must be above 0")

    @property
    def excerpt(self) -> Excerpt:
        return Excerpt(self.excerpt_seconds, self.excerpt_at)


def transform(library: Library, config: TransformConfig) -> Summary:
    """Compute the spectrograms of the previews that have none yet."""
    previews, output = library.table("previews"), library.table("spectrograms", config.set)
    specs = {name: asdict(SPECS[name]) for name in config.specs}
    output.claim({"specs": specs, "excerpt": asdict(config.excerpt)})

    def plan(rows: ray.data.Dataset, tally: ray.actor.ActorHandle, block_rows: int) -> ray.data.Dataset:
        block = partial(_transform_block, config=config, tally=tally)
        # In this order Ray Data makes one task of both: it cuts its references to what was read, and no copy.
        made = rows.map_batches(block, batch_size=block_rows, batch_format="pyarrow")
        return made.repartition(target_num_rows_per_block=block_rows, strict=True)

    summary = fill("transform", previews, output, plan, config.rows_per_file)
    summary.check(config.max_failed_share)
    return summary


def _transform_block(previews: pa.Table, config: TransformConfig, tally: ray.actor.ActorHandle) -> pa.Table:
    places = range(0, previews.num_rows, BATCH_ROWS)
    batches = (previews.slice(place, BATCH_ROWS) for place in places)
    return pa.concat_tables([_transform_and_count(batch, config, tally) for batch in batches])


def _transform_and_count(
    previews: pa.Table, config: TransformConfig, tally: ray.actor.ActorHandle
) -> pa.Table:
    """Ray Data tries a task again, without limit, whose process died. A batch that did not live to its end
    is then taken apart, so that it kills its task at most once."""
    keys = previews["track_key"].to_pylist()
    killed = ray.get(tally.begin.remote(keys))
    with _decoders_silenced():
        rows, again = (_transform_apart if killed else transform_batch)(previews, config)
    tally.end.remote(keys)
    ray.get(tally.add.remote(rows.num_rows, again))  # it shall know before the stage ends
    return rows


@contextmanager
def _decoders_silenced() -> Iterator[None]:
    """Within, nothing reaches the process's stderr, to which libmpg123 writes what it thinks of a file."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _transform_apart(previews: pa.Table, config: TransformConfig) -> tuple[pa.Table, list[str]]:
    """As transform_batch, each track in a task of its own; one that kills it twice is a decoder_died."""
    alone = ray.remote(max_retries=1)(transform_batch)
    attempts = [alone.remote(previews.slice(place, 1), config) for place in range(previews.num_rows)]
    outcomes = []
    for preview, attempt in zip(previews.select(KEYS).to_pylist(), attempts, strict=True):
        try:
            outcomes.append(ray.get(attempt))
        except ray.exceptions.WorkerCrashedError:
            detail = f"crashed its process, or took longer than {config.seconds_per_track:g} s"
            outcomes.append((_table([preview | {"error": "decoder_died", "detail": detail}], config), []))
    tables, again = zip(*outcomes, strict=True)
    return pa.concat_tables(tables), list(chain(*again))


def transform_batch(previews: pa.Table, config: TransformConfig) -> tuple[pa.Table, list[str]]:
    """Rows of previews → rows of spectrograms, with an error where one cannot be decoded; and the classes
    of the failures that may pass (a file that is not there now), which get no row.

    A decoder that takes longer than it may ends the process: nothing less ends a C library that hangs.
    """
    rows = []
    try:
        for preview in previews.to_pylist():
            faulthandler.dump_traceback_later(config.seconds_per_track, exit=True)
            rows.append(_transform_row(preview, config))
    finally:
        faulthandler.cancel_dump_traceback_later()
    final = [row for row in rows if row.get("error") not in PASSING]
    return _table(final, config), [row["error"] for row in rows if row.get("error") in PASSING]


def _transform_row(preview: dict[str, Any], config: TransformConfig) -> dict[str, Any]:
    row = {key: preview[key] for key in KEYS}
    try:
        sound = preview["location"] if preview["audio"] is None else preview["audio"]
        recording = read(sound, config.excerpt)
        row["seconds"] = len(recording.samples) / recording.rate
        row["missing_seconds"] = recording.missing_seconds
        for rate in {SPECS[name].rate for name in config.specs}:
            planes = compute(recording.resampled(rate), [n for n in config.specs if SPECS[n].rate == rate])
            row |= {name: quantise(plane, SPECS[name]).tobytes() for name, plane in planes.items()}
    except AudioError as error:
        row |= {"error": error.kind, "detail": str(error)}
    return row


def _table(rows: list[dict[str, Any]], config: TransformConfig) -> pa.Table:
    """Rows in the declared columns, but for the specs that are not asked for."""
    declared = TABLES["spectrograms"].columns.items()
    columns = {name: kind for name, kind in declared if name in config.specs or name not in SPECS}
    return pa.Table.from_pylist(rows, pa.schema(columns))


def compute(samples: Samples, names: Sequence[str]) -> dict[str, Plane]:
    """What librosa makes of the samples under each of some specs of their rate, (frames, bins).

    dB are relative to the loudest bin, −80…0. Specs of equal windows share one Fourier transform.
    """
    energies = {name: _empty(samples, SPECS[name]) for name in names}
    for n_fft, hop_length in {(SPECS[name].n_fft, SPECS[name].hop_length) for name in names}:
        sharing = [n for n in names if (SPECS[n].n_fft, SPECS[n].hop_length) == (n_fft, hop_length)]
        for frames, power in _power(samples, n_fft, hop_length):
            for name in sharing:
                _gather(power, SPECS[name], energies[name][frames])
    return {name: _finish(energy, SPECS[name]) for name, energy in energies.items()}


def _empty(samples: Samples, spec: Spec) -> Plane:
    return np.empty((1 + len(samples) // spec.hop_length, spec.n_mels or spec.bins), np.float32)


def _power(samples: Samples, n_fft: int, hop_length: int) -> Iterator[tuple[slice, Plane]]:
    """Blocks of the power spectrogram, (frames, 1 + n_fft / 2), with their places; centred Hann windows."""
    window = librosa.filters.get_window("hann", n_fft).astype(np.float32)
    padded = np.pad(samples, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length]
    for first in range(0, len(frames), BLOCK_FRAMES):
        place = slice(first, first + BLOCK_FRAMES)
        amplitudes: Plane = np.abs(scipy.fft.rfft(frames[place] * window, overwrite_x=True))
        yield place, np.square(amplitudes, out=amplitudes)


def _gather(power: Plane, spec: Spec, out: Plane) -> None:
    """Sums of the power in each of the spec's bands."""
    if not (spec.n_mels or spec.n_chroma):
        out[:] = power
    for bands, bins, weights in _filters(spec):
        np.matmul(power[:, bins], weights, out=out[:, bands])


@cache
def _filters(spec: Spec) -> list[tuple[slice, slice, Plane]]:
    """librosa's filter bank in groups of neighbours: the bands, the bins that they take, (bins, bands)."""
    if spec.n_chroma:  # as tuned to 440 Hz: a tuning that is guessed for each clip would be another variable
        bank = librosa.filters.chroma(sr=spec.rate, n_fft=spec.n_fft, n_chroma=spec.n_chroma, tuning=0.0)
    elif spec.n_mels:
        bank = librosa.filters.mel(sr=spec.rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmax=spec.fmax)
    else:
        return []
    groups = []
    for first in range(0, len(bank), BAND_BINS):
        bands = slice(first, first + BAND_BINS)
        used = np.flatnonzero(bank[bands].any(axis=0))
        bins = slice(used[0], used[-1] + 1)
        groups.append((bands, bins, np.ascontiguousarray(bank[bands, bins].T)))
    return groups


def _finish(energy: Plane, spec: Spec) -> Plane:
    """Energies as the spec has them: in dB, or as cepstra, or relative to the strongest pitch."""
    if spec.n_chroma:
        loudest = energy.max(axis=1, keepdims=True)
        np.divide(energy, loudest, out=energy, where=loudest > np.finfo(np.float32).tiny)
        return energy
    decibels = _decibels(energy)
    if spec.n_mfcc:
        cepstra: Plane = scipy.fft.dct(decibels, axis=1, norm="ortho")[:, : spec.n_mfcc]
        return cepstra
    return decibels


def _decibels(power: Plane) -> Plane:
    """librosa.power_to_db(power, ref=np.max, top_db=80), in place."""
    np.maximum(power, AMIN, out=power)
    np.log10(power, out=power)
    power *= 10
    power -= power.max()
    return np.maximum(power, -TOP_DB, out=power)


def quantise(plane: Plane, spec: Spec) -> Spectrogram:
    """The spec's range → 0…255, the nearest step: for dB a step is 0.31 dB, and the error half of it."""
    low, high = spec.range
    levels: Spectrogram = np.rint((plane - low) * (255 / (high - low))).astype(np.uint8)
    return levels


def from_bytes(column: bytes, spec: Spec) -> Spectrogram:
    """What a cell of the table holds, (frames, bins), without a copy."""
    return np.frombuffer(column, np.uint8).reshape(-1, spec.bins)
