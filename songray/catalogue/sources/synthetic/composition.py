"""The score of a synthetic song: its form, harmony, melody and accompaniment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from songray.catalogue.sources.synthetic.styles import Style

# Which of lead, chords, bass and drums play in each quarter of the song.
ARRANGEMENTS = (
    ("CB", "CBD", "LCBD", "LCBD"),
    ("LC", "LCBD", "CBD", "LCBD"),
    ("CBD", "LCBD", "LC", "LCBD"),
    ("LCBD", "LCBD", "CB", "LCBD"),
)
VELOCITY = {"x": 1.0, "o": 0.45}


@dataclass(frozen=True)
class Note:
    step: int  # sixteenths from the start
    steps: int
    midi: int
    velocity: float


@dataclass(frozen=True)
class Bar:
    root: int  # scale step of the chord's root
    layers: str  # which of L, C, B and D play


@dataclass(frozen=True)
class Key:
    tonic: int  # pitch class
    scale: tuple[int, ...]  # semitones above the tonic

    def midi(self, root: int, steps: int, lowest: int) -> int:
        """The note that many scale steps above a root, which lies within the octave from lowest."""
        root_midi = lowest + (self.tonic + self.semitones(root) - lowest) % 12
        return root_midi + self.semitones(root + steps) - self.semitones(root)

    def semitones(self, step: int) -> int:
        octave, degree = divmod(step, len(self.scale))
        return 12 * octave + self.scale[degree]


def form(count: int, pick: Callable[[tuple[Any, ...]], Any], style: Style) -> Iterator[Bar]:
    """Four sections; the third one has a progression of its own."""
    verse, bridge, arrangement = pick(style.progressions), pick(style.progressions), pick(ARRANGEMENTS)
    for number in range(count):
        section = number * len(arrangement) // count
        progression = bridge if section == 2 else verse
        yield Bar(progression[number % len(progression)], arrangement[section])


def accompaniment(
    layer: str, pattern: str, chord: tuple[int, ...], key: Key, bars: list[Bar], lowest: int
) -> Iterator[Note]:
    """The pattern over every bar in which the layer plays, on the chord of that bar."""
    onsets = [step for step, sign in enumerate(pattern) if sign != "."]
    ends = [*onsets[1:], len(pattern)]
    for number, bar in enumerate(bars):
        for onset, end in zip(onsets, ends, strict=True):
            sign = pattern[onset]
            for steps in (chord if sign in VELOCITY else (int(sign),)) if layer in bar.layers else ():
                midi = key.midi(bar.root, steps, lowest)
                yield Note(number * len(pattern) + onset, end - onset, midi, VELOCITY.get(sign, 0.8))


def melody(style: Style, key: Key, bars: list[Bar], bar_steps: int, random: Generator) -> Iterator[Note]:
    """Two motifs of one bar as phrases A A B A, moved along with the harmony."""
    motifs = [list(_motif(style.density, bar_steps, random)) for _ in range(2)]
    for number, bar in enumerate(bars):
        for onset, length, steps in motifs[number % 4 == 2] if "L" in bar.layers else ():
            midi = key.midi(bar.root, steps, style.register - 8)
            yield Note(number * bar_steps + onset, length, midi, float(random.uniform(0.7, 1.0)))


def _motif(density: float, bar_steps: int, random: Generator) -> Iterator[tuple[int, int, int]]:
    """Notes as (onset, length, scale steps above the chord's root), mostly on the beats."""
    probability = np.array([1.6, 0.15, 0.9, 0.15] * (bar_steps // 4)) * density
    onsets = np.flatnonzero(random.random(bar_steps) < probability).tolist() or [0]
    steps = int(random.choice([0, 2, 4]))
    for onset, end in zip(onsets, [*onsets[1:], bar_steps], strict=True):
        yield onset, min(end - onset, 8), steps
        steps = int(np.clip(steps + random.choice([-2, -1, -1, 0, 1, 1, 2]), -3, 8))
