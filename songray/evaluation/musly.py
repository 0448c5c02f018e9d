"""Musly's method "timbre" (Pohle et al., 2007; Schnitzer et al., 2011), a baseline: it has no vectors, but a
distance of each pair of tracks."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from songray.audio.excerpt import Excerpt
from songray.evaluation.intervals import Observations
from songray.evaluation.metrics import ranking, score_rankings
from songray.evaluation.sample import Sample
from songray.evaluation.sounds import recordings
from songray.evaluation.space import OCCURRENCE_K, hubness
from songray.library import Library

MOST_TRACKS = 1000  # that are compared: the time is quadratic
RATE = 22_050  # Hz


def is_installed() -> bool:
    return find_spec("pymusly") is not None


def musly(
    library: Library, sample: Sample, excerpt: Excerpt, neighbours: int
) -> tuple[dict[str, Observations], dict[str, float]]:
    """Retrieval, and the facts of the space that need no vectors, on the first 1,000 tracks of a sample. A
    track that cannot be decoded is the farthest from all."""
    from pymusly import MuslyJukebox

    count = min(MOST_TRACKS, len(sample.rows))
    jukebox = MuslyJukebox(method="timbre")
    tracks = {
        position: jukebox.track_from_audiodata(recording.resampled(RATE))
        for position, recording in recordings(library, sample, range(count), excerpt)
    }
    jukebox.set_style(list(tracks.values()))
    pairs = list(tracks.items())
    jukebox.add_tracks(pairs)
    distances = np.array([jukebox.compute_similarity(pair, pairs) for pair in pairs], np.float32)
    similarities = np.full((count, count), -np.finfo(np.float32).max)
    known = np.array(list(tracks))
    similarities[np.ix_(known, known)] = -(distances + distances.T) / 2  # what is not symmetric is averaged
    queries, ranked = ranking(similarities, 0)
    found = {
        task.name: Observations(each.values, sample.artists[each.queries], each.chance)
        for task, each in score_rankings([(queries, ranked)], sample.rows[:count], neighbours).items()
    }
    return found, hubness(ranked[:, :OCCURRENCE_K].astype(np.int64))
