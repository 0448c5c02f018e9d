"""Questions in words over 256 clips of game music: the first five answers, and whether facts that can be
measured in the audio agree with the words.

The facts need no network: onsets a second, the tempo, the spectral centroid, the level (root mean square),
and the share of the energy that is harmonic, all by librosa. A question is compared by the mean of a fact
over its first ten answers with that over all clips; p is the share of 10,000 random sets of ten clips whose
mean lies at least as far to the side that the words say.
"""

from __future__ import annotations

import librosa
import numpy as np
from bench_pretrained import MUSIC, manifest, music  # noqa: F401  # a fixture
from tabulate import tabulate

from songray.audio.spectrograms import Spectrogram
from songray.learning.fusion import JoinedTags
from songray.learning.loop import build_model
from songray.learning.models import MODELS
from songray.learning.windows import embed_windows, tag_clips
from songray.library import Vectors
from songray.search.tags import Tags, statistics, to_levels
from songray.search.words import parse_question

SEED, SHOWN, COMPARED, DRAWS = 0, 5, 10, 10_000
RATE = 22050
QUESTIONS = {  # the fact that agrees with the words, and whether it shall be high
    "calm piano without voice": ("onsets/s", False),
    "fast and loud rock": ("level", True),
    "quiet music": ("level", False),
    "slow and sad": ("onsets/s", False),
    "energetic techno": ("onsets/s", True),
    "ambient, no drums": ("harmonic", True),
    "drums and percussion": ("harmonic", False),
    "classical strings": ("harmonic", True),
    "happy and upbeat": ("tempo", True),
    "heavy metal with guitars": ("level", True),
    "soft flute": ("level", False),
    "choir": ("harmonic", True),
    "medieval harp": ("centroid", False),
    "electronic dance music": ("level", True),
    "jazz": ("tempo", True),
    "relaxing, not electronic": ("level", False),
    "chiptune synthesizer": ("centroid", True),
    "acoustic guitar without drums": ("harmonic", True),
    "female voice": ("harmonic", True),
    "dark and strange": ("centroid", False),
}


def tags(clips: list[dict[str, Spectrogram]]) -> tuple[tuple[str, ...], Vectors]:
    """The joined labels of both pretrained networks, and their probabilities, (clips, labels)."""
    names = ("musicnn-msd", "musicnn-mtt")
    spectrograms = [clip["mel96-16k"] for clip in clips]
    models = [build_model(MODELS[name](), SEED) for name in names]
    joined = JoinedTags([MODELS[name].tags for name in names])
    probabilities = joined.join([tag_clips(model, embed_windows(model, spectrograms)) for model in models])
    assert probabilities is not None
    return joined.labels, probabilities


def facts() -> dict[str, np.ndarray]:
    rows = [describe(librosa.load(MUSIC / row["file"], sr=RATE)[0]) for row in manifest()]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def describe(samples: np.ndarray) -> dict[str, float]:
    harmonic, _ = librosa.effects.hpss(samples)
    onsets = librosa.onset.onset_detect(y=samples, sr=RATE)
    return {
        "onsets/s": len(onsets) / (len(samples) / RATE),
        "tempo": float(librosa.feature.tempo(y=samples, sr=RATE)[0]),
        "centroid": float(librosa.feature.spectral_centroid(y=samples, sr=RATE).mean()),
        "level": float(np.sqrt(np.mean(samples**2))),
        "harmonic": float(np.sum(harmonic**2) / np.sum(samples**2)),
    }


def test_questions(music: list[dict[str, Spectrogram]]) -> None:  # noqa: F811
    labels, probabilities = tags(music)
    levels = to_levels(probabilities)
    index = Tags(statistics(labels, levels))
    measured, random = facts(), np.random.default_rng(SEED)
    names = np.array([row["recording"] for row in manifest()])
    table = []
    for question, (fact, is_high) in QUESTIONS.items():
        order = np.argsort(-index.score(levels, parse_question(question, labels)), kind="stable")
        first = list(dict.fromkeys(names[order]))[:SHOWN]
        print(f"\n{question}\n    " + ", ".join(first))
        values = measured[fact] if is_high else -measured[fact]
        best = values[order[:COMPARED]].mean()
        draws = [values[random.choice(len(values), COMPARED, replace=False)].mean() for _ in range(DRAWS)]
        p = np.mean(np.array(draws) >= best)
        sign = "higher" if is_high else "lower"
        table.append([question, f"{fact} {sign}", abs(best), measured[fact].mean(), p])
    heads = ["question", "expected", "first ten", "all", "p"]
    print("\n" + tabulate(table, heads, tablefmt="github", floatfmt=".3f"))
    agreeing = sum(row[-1] < 0.05 for row in table)
    print(f"\n{agreeing} of {len(table)} questions agree with their fact (p < 0.05, one-sided)")
