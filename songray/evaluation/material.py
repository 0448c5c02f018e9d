"""What the figures of a report show: vectors, maps, spectrograms and sound of the tracks of the sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from songray.audio.sets import excerpt_of
from songray.audio.spectrograms import SPECS
from songray.evaluation.clusters import kmeans
from songray.evaluation.measure import Measured
from songray.evaluation.scores import Evaluation
from songray.evaluation.sounds import recordings
from songray.evaluation.space import reduced
from songray.learning import runs
from songray.learning.runs import ADAPTATION, Run
from songray.library import Library, Row, Vectors
from songray.search.maps import Faithfulness, Method, Positions, faithfulness, positions_of

if TYPE_CHECKING:  # torch and the decoders are imported in functions
    from songray.audio.decode import Recording
    from songray.learning.encoder import ModelEncoder

MAP_TRACKS = 5000  # that maps show, and that clusters are made of
MOST_GENRES = 20  # that have a color


@dataclass
class Material:
    """What is known of the tracks of the sample, by their positions in it. What several figures show is
    computed once."""

    library: Library
    measured: Measured
    evaluation: Evaluation

    def __post_init__(self) -> None:
        self.rows = self.measured.sample.rows[:MAP_TRACKS]
        self.short, self.positions = cache(self._short), cache(self._positions)
        self.faithfulness, self.clusters = cache(self._faithfulness), cache(self._clusters)
        self.encoder, self.recording = cache(self._encoder), cache(self._recording)

    @cached_property
    def records(self) -> dict[str, Run]:
        return {name: runs.choose(self.library, name) for name in self.measured.vectors}

    @cached_property
    def best(self) -> str:
        """The run with the highest R-precision by artist, or else the first one; but for those that were
        fitted to these artists."""
        scores = {
            run: one.metrics["r_precision"].mean
            for run, each in self.evaluation.scores.items()
            for one in each
            if run in self.records and one.task == "artist" and self.records[run].model != ADAPTATION
        }
        return max(scores, key=lambda run: scores[run]) if scores else next(iter(self.records))

    def run_of(self, model: str) -> str | None:
        """The first run of a model that is compared."""
        return next((name for name, run in self.records.items() if run.model == model), None)

    def vectors(self, run: str) -> Vectors:
        return self.measured.vectors[run][:MAP_TRACKS]

    def _short(self, run: str) -> Vectors:
        return reduced(self.vectors(run))

    def _positions(self, run: str, method: Method) -> Positions:
        return positions_of(self.short(run), method)

    def _faithfulness(self, run: str, method: Method) -> Faithfulness:
        return faithfulness(self.short(run), self.positions(run, method))

    @cached_property
    def genres(self) -> list[str]:
        """The genres of the most tracks, as the first one of each: those that have a color."""
        return _most_frequent(self.first_genres)

    @cached_property
    def first_genres(self) -> list[str]:
        return [(row["genres"] or [""])[0] for row in self.rows]

    @cached_property
    def genre_codes(self) -> NDArray[np.int64]:
        """The position of each track's genre among `genres`, or −1."""
        return _codes(self.first_genres, self.genres)

    @cached_property
    def colors(self) -> tuple[list[str], NDArray[np.int64]]:
        """Names of the colors of maps, and the color of each track, or −1: by genre or, where there are fewer
        than two, by artist."""
        if len(self.genres) > 1:
            return self.genres, self.genre_codes
        artists = [(row["artist_names"] or [""])[0] for row in self.rows]
        names = _most_frequent(artists)
        return names, _codes(artists, names)

    def _clusters(self, run: str) -> NDArray[np.int64]:
        """K-means clusters of a run, as many as there are genres, or as the silhouette chooses."""
        counts = self.measured.counts.get(run)
        count = len(self.genres) if len(self.genres) > 1 else counts.by_silhouette if counts else 2
        return kmeans(self.short(run), count).astype(np.int64)

    def _encoder(self, run: str) -> ModelEncoder:
        """The encoder of a run of one model."""
        from songray.learning.encoder import load_model

        return load_model(self.library, self.records[run])

    def windows(self, run: str, position: int) -> NDArray[np.float32] | None:
        """The windows that a run's model takes of a track, in 0…1: (windows, frames, bins). None where its
        spectrogram is not stored."""
        from songray.audio.inputs import from_bytes
        from songray.learning.windows import tile

        model = self.encoder(run).model
        if model.spec not in SPECS:
            return None
        table = self.library.table("spectrograms", self.records[run].set)
        found = table.newest_rows(self.measured.sample.tracks[[position]], [model.spec])
        if not found.num_rows or found[model.spec][0].as_py() is None:
            return None
        clip = from_bytes(found[model.spec][0].as_py(), model.spec)
        windows = tile(clip, model.frames, None, model.padding).astype(np.float32) / np.float32(255)
        return windows

    def _recording(self, position: int) -> Recording | None:
        """The excerpt of a track that is embedded; None where it cannot be decoded any more."""
        excerpt = excerpt_of(self.library, self.records[self.best].set)
        found = dict(recordings(self.library, self.measured.sample, [position], excerpt))
        return found.get(position)


def _most_frequent(names: list[str]) -> list[str]:
    """The names of the most tracks, the most frequent one first, but for ""."""
    known, counts = np.unique([name for name in names if name], return_counts=True)
    order = np.lexsort((known, -counts))[:MOST_GENRES]
    return [str(known[number]) for number in order] if len(known) else []


def _codes(names: list[str], order: list[str]) -> NDArray[np.int64]:
    """The position of each name in an order, or −1."""
    number = {name: position for position, name in enumerate(order)}
    return np.array([number.get(name, -1) for name in names])


def title(row: Row) -> str:
    """Such as "Song – Artist"."""
    artists = ", ".join(row["artist_names"] or []) or "unknown artist"
    return f"{row['title'] or row['track_id']} – {artists}"
