"""Robustness and cost of a run's encoder: it embeds copies of tracks that were changed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from songray.audio.excerpt import Excerpt
from songray.audio.extract import stderr_silenced
from songray.audio.sets import excerpt_of
from songray.errors import AudioError
from songray.evaluation.intervals import Observations
from songray.evaluation.sample import Sample
from songray.evaluation.sounds import recordings
from songray.learning import fusion, runs
from songray.learning.models import MODELS
from songray.learning.runs import Run
from songray.library import Library, Vectors

if TYPE_CHECKING:  # torch and the decoders are imported in functions: jobs import this module
    from songray.audio.decode import Recording
    from songray.learning.encoder import ModelEncoder

METRICS = {
    "itself": "the share of the changed tracks whose nearest track is the original, or the same recording",
    "cosine": "the mean cosine to the original",
}
MP3_RATE, MP3_BITS = 44_100, 64_000
QUIETER_DECIBELS = -12.0

Change = Callable[["Recording"], "Recording"]
PREVIEW = "30-s-of-the-middle"  # a preview, where the run embeds another part of the song
PREVIEW_EXCERPT = Excerpt(30.0, "middle")
LONG_SECONDS = 60.0  # of songs of which a preview is only a part


@dataclass(frozen=True)
class Embedded:
    """Vectors of changed tracks under a run."""

    positions: NDArray[np.int64]  # of the tracks in the sample, sorted
    vectors: Vectors  # (positions, dimension)
    milliseconds: float  # a track, of the run's models


NOTHING = Embedded(np.empty(0, np.int64), np.empty((0, 0), np.float32), 0.0)


@dataclass
class ChangedTracks:
    """Changed copies of the first tracks of a sample, and their vectors; each is computed once."""

    library: Library
    sample: Sample
    count: int
    _recordings: dict[tuple[Excerpt, float], dict[int, Recording]] = field(default_factory=dict)
    _inputs: dict[tuple[Excerpt, str, str], dict[int, bytes]] = field(default_factory=dict)
    _embedded: dict[tuple[str, str], Embedded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.encoder = lru_cache(maxsize=1)(self._load)  # runs follow one another

    def _load(self, name: str) -> ModelEncoder:
        """The encoder of a run of one model."""
        from songray.learning.encoder import load_model

        return load_model(self.library, runs.choose(self.library, name))

    def embed(self, run: Run, change: str) -> Embedded:
        """The vectors of a run; those of a run that joins others are joined from theirs."""
        if (run.name, change) not in self._embedded:
            embed = self._join if run.members else self._encode
            self._embedded[run.name, change] = embed(run, change)
        return self._embedded[run.name, change]

    def _join(self, run: Run, change: str) -> Embedded:
        members = [self.embed(runs.member(self.library, run, name), change) for name in run.members]
        positions = reduce(np.intersect1d, (member.positions for member in members))
        if not positions.size:
            return NOTHING
        vectors = [member.vectors[np.isin(member.positions, positions)] for member in members]
        joined = fusion.load(self.library, run).join(vectors)
        return Embedded(positions, joined, sum(member.milliseconds for member in members))

    def _encode(self, run: Run, change: str) -> Embedded:
        from songray.audio.inputs import from_bytes

        encoder, excerpt = self.encoder(run.name), excerpt_of(self.library, run.set)
        (spec,) = encoder.specs
        cells = self._changed(excerpt, change, spec)
        if not cells:
            return NOTHING
        started = time.perf_counter()
        vectors = encoder.encode({spec: [from_bytes(cell, spec) for cell in cells.values()]})
        milliseconds = 1000 * (time.perf_counter() - started) / max(1, len(cells))
        return Embedded(np.array(list(cells), np.int64), vectors, milliseconds)

    def _changed(self, excerpt: Excerpt, change: str, spec: str) -> dict[int, bytes]:
        """One input of each changed track, by position."""
        from songray.audio.inputs import compute_inputs

        if (excerpt, change, spec) not in self._inputs:
            found = {}
            for position, recording in self._unchanged(excerpt, change).items():
                with suppress(AudioError), stderr_silenced():  # too short or too quiet once it is changed
                    found[position] = compute_inputs(CHANGES[change](recording), [spec])[spec]
            self._inputs[excerpt, change, spec] = found
        return self._inputs[excerpt, change, spec]

    def _unchanged(self, excerpt: Excerpt, change: str) -> dict[int, Recording]:
        """What is changed: the excerpts that the run embeds, or previews of long songs."""
        if change != PREVIEW:
            return self._decoded(excerpt)
        if excerpt == PREVIEW_EXCERPT:
            return {}
        return self._decoded(PREVIEW_EXCERPT, LONG_SECONDS)

    def _decoded(self, excerpt: Excerpt, least_seconds: float = 0.0) -> dict[int, Recording]:
        """The excerpts of the tracks that can be decoded, and that last so long, by position."""
        if (excerpt, least_seconds) not in self._recordings:
            seconds = [row["duration_seconds"] or 0.0 for row in self.sample.rows[: self.count]]
            positions = [position for position, length in enumerate(seconds) if length >= least_seconds]
            found = dict(recordings(self.library, self.sample, positions, excerpt))
            self._recordings[excerpt, least_seconds] = found
        return self._recordings[excerpt, least_seconds]


def robustness(vectors: Vectors, run: Run, tracks: ChangedTracks) -> dict[str, Observations]:
    """For each change, whether a changed track's nearest one, of all tracks of the sample, is the original.

    Of all tracks `vectors` has the unit vectors, (tracks, dimension).
    """
    found, rows = {}, tracks.sample.rows
    recordings = np.array([row["recording"] or row["track_id"] for row in rows], object)
    for change in CHANGES:
        changed = tracks.embed(run, change)
        if not changed.positions.size:
            continue
        cosines = changed.vectors @ vectors.T
        itself = recordings[cosines.argmax(axis=1)] == recordings[changed.positions]
        own = cosines[np.arange(len(cosines)), changed.positions]
        values = {"itself": itself.astype(float), "cosine": own.astype(float)}
        found[change] = Observations(values, tracks.sample.artists[changed.positions])
    return found


def cost(run: Run, dimension: int, tracks: ChangedTracks) -> dict[str, float | str]:
    """What the vectors of a run cost, and what its model was trained on. The time is that of the models, from
    what is stored of a track to its vector, on this machine."""
    every = [tracks.embed(run, change) for change in CHANGES]
    milliseconds = np.mean([each.milliseconds for each in every if each.positions.size] or [0.0])
    return {
        "dimension": dimension,
        "bytes a vector": 4 * dimension,
        "parameters": parameters(tracks, run),
        "ms a track": float(milliseconds),
        "trained on": trained_on(tracks, run),
    }


def parameters(tracks: ChangedTracks, run: Run) -> int:
    """The number of weights of a model, or of the models of all runs that are joined."""
    if run.members:
        return sum(parameters(tracks, runs.member(tracks.library, run, name)) for name in run.members)
    return sum(weights.numel() for weights in tracks.encoder(run.name).model.parameters())


def trained_on(tracks: ChangedTracks, run: Run) -> str:
    """Text such as "400 tracks of this library"."""
    if run.members:
        return " + ".join(run.members)
    if text := MODELS[run.model].trained_on:
        return text
    is_fitted = bool(run.metrics) or tracks.encoder(run.name).model.is_fitted
    return f"{run.tracks.get('train', 0)} tracks of this library" if is_fitted else "nothing"


def as_mp3(recording: Recording, bits_a_second: int = MP3_BITS) -> bytes:
    """An MP3 of a recording, in mono."""
    import av

    samples = recording.resampled(MP3_RATE)
    with io.BytesIO() as buffer:
        with av.open(buffer, "w", format="mp3") as output:
            stream = output.add_stream("mp3", rate=MP3_RATE, layout="mono", bit_rate=bits_a_second)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
            frame.sample_rate = MP3_RATE
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        return buffer.getvalue()


def _through_mp3(recording: Recording) -> Recording:
    from songray.audio.decode import decode

    return decode(as_mp3(recording), Excerpt(len(recording.samples) / recording.rate, "start"))


def _quieter(recording: Recording) -> Recording:
    from songray.audio.decode import Recording

    factor = np.float32(10 ** (QUIETER_DECIBELS / 20))
    return Recording(recording.samples * factor, recording.rate, recording.missing_seconds)


def _second_half(recording: Recording) -> Recording:
    from songray.audio.decode import Recording

    half = recording.samples[len(recording.samples) // 2 :]
    return Recording(half, recording.rate, recording.missing_seconds)


CHANGES: dict[str, Change] = {
    "mp3-at-64-kbit/s": _through_mp3,
    "12-dB-quieter": _quieter,
    "the-second-half-alone": _second_half,
    PREVIEW: lambda recording: recording,
}
