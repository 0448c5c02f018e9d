"""The instruments, drums and styles of the synthetic catalogue, as tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timbre:
    """One instrument: partials, frequency modulation and breath under one envelope."""

    partials: float
    slope: float  # partial k has the amplitude k ** -slope
    decay_seconds: float
    attack_seconds: float = 0.004
    damping: float = 0.0  # how much faster each higher partial dies
    even: float = 1.0  # weight of the even partials; without them it sounds hollow
    stretch: float = 0.0  # inharmonicity, as of stiff strings
    index: float = 0.0  # depth of the frequency modulation
    ratio: float = 1.0  # its frequency over that of the note
    vibrato: float = 0.0  # share of the frequency
    detune: float = 0.0  # share of the frequency by which a second voice is off
    breath: float = 0.0
    drive: float = 0.0


@dataclass(frozen=True)
class Drum:
    """One drum: a falling sine and a band of noise that die away."""

    hz: float
    fall_hz: float
    decay_seconds: float
    noise: float  # weight of the noise, the sine has 1 - noise
    low_hz: float = 200.0
    high_hz: float = 9000.0


@dataclass(frozen=True)
class Mix:
    """How the parts are mixed: levels, reverberation and tone."""

    lead: float
    chords: float
    bass: float
    drums: float
    cutoff_hz: float
    wet: float
    tail_seconds: float
    echo: float = 0.0
    swing: float = 0.0  # delay of the off-beat eighths in sixteenths
    pump: float = 0.0  # depth of the ducking by the beat
    hiss: float = 0.0
    drive: float = 0.3


@dataclass(frozen=True)
class Style:
    """The parameters of a genre. Patterns have one sign per sixteenth and are one bar long.

    Drums: x loud, o soft. Chords: x the whole chord. Digits: scale steps above the chord's root.
    """

    tempo_bpm: tuple[float, float]
    scales: tuple[tuple[int, ...], ...]
    progressions: tuple[tuple[int, ...], ...]  # scale steps of the roots, one a bar
    chord: tuple[int, ...]
    lead_timbres: tuple[str, ...]
    chord_timbres: tuple[str, ...]
    bass_timbres: tuple[str, ...]
    chord_patterns: tuple[str, ...]
    bass_patterns: tuple[str, ...]
    drum_patterns: tuple[dict[str, str], ...]
    register: int  # MIDI number around which the melody moves
    density: float  # probability of a melody note on a strong sixteenth
    mix: Mix


TIMBRES = {
    "bell": Timbre(3, 2.0, 1.1, index=1.4, ratio=3.5),
    "distorted guitar": Timbre(12, 0.8, 1.6, detune=0.004, drive=4.0),
    "electric piano": Timbre(5, 1.8, 0.9, damping=0.2, index=0.9, ratio=2.0),
    "fat bass": Timbre(12, 1.1, 0.5, damping=0.15, detune=0.004),
    "flute": Timbre(4, 1.7, 4.0, 0.06, vibrato=0.004, breath=0.15),
    "guitar": Timbre(14, 1.1, 1.0, damping=0.35),
    "nylon guitar": Timbre(9, 1.5, 0.7, damping=0.4),
    "organ": Timbre(8, 0.8, 6.0, 0.012, vibrato=0.002, even=0.7),
    "pad": Timbre(8, 1.3, 6.0, 0.35, detune=0.005),
    "piano": Timbre(10, 1.4, 1.4, damping=0.25, stretch=0.0004),
    "pulse": Timbre(15, 1.0, 2.0, even=0.15),
    "reed": Timbre(9, 0.9, 3.0, 0.04, even=0.4, vibrato=0.004, breath=0.06),
    "saw": Timbre(16, 1.0, 1.5, 0.01, detune=0.006),
    "stab": Timbre(12, 0.9, 0.22, damping=0.2, detune=0.006),
    "strings": Timbre(10, 1.1, 5.0, 0.12, vibrato=0.004, detune=0.003),
    "sub bass": Timbre(3, 1.8, 1.2, 0.01),
    "upright bass": Timbre(6, 1.4, 0.6, damping=0.3),
}

DRUMS = {
    "kick": Drum(48, 130, 0.11, 0.04),
    "snare": Drum(185, 60, 0.08, 0.75, 700, 8000),
    "clap": Drum(400, 0, 0.07, 0.97, 900, 4000),
    "hat": Drum(900, 0, 0.025, 0.98, 6000, 10500),
    "cymbal": Drum(1100, 0, 0.22, 0.96, 4500, 10500),
    "rim": Drum(620, 80, 0.03, 0.4, 1200, 5000),
    "brush": Drum(220, 0, 0.09, 0.96, 1500, 6500),
    "shaker": Drum(700, 0, 0.04, 0.98, 3500, 9000),
    "blip": Drum(110, 500, 0.06, 0.35, 300, 10000),
}

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
DORIAN = (0, 2, 3, 5, 7, 9, 10)
PHRYGIAN = (0, 1, 3, 5, 7, 8, 10)
LYDIAN = (0, 2, 4, 6, 7, 9, 11)
MIXOLYDIAN = (0, 2, 4, 5, 7, 9, 10)
TRIAD, SEVENTH, POWER = (0, 2, 4), (0, 2, 4, 6), (0, 4, 7)

STYLES = {
    "ambient": Style(
        (58, 88), (LYDIAN, MAJOR), ((0, 4, 1, 4), (0, 2, 5, 4), (3, 0, 4, 1)), SEVENTH,
        ("bell", "flute"), ("pad", "strings"), ("sub bass", "organ"),
        ("x...............", "x.......x......."), ("0...............", "0.........4....."),
        ({"shaker": "....o.......o..."}, {"kick": "o...............", "shaker": "..o...o...o...o."}),
        74, 0.25, Mix(0.5, 1.0, 0.6, 0.2, 3500, 0.7, 2.2, echo=0.5, hiss=0.01),
    ),
    "chiptune": Style(
        (108, 160), (MAJOR, MINOR), ((0, 5, 3, 4), (0, 4, 5, 3), (5, 3, 0, 4)), TRIAD,
        ("pulse",), ("pulse", "bell"), ("pulse", "fat bass"),
        ("0247024702470247", "0.2.4.7.4.2.0.2."), ("0.0.7.0.0.0.7.4.", "0...0...4...0..."),
        ({"blip": "x...x...x...x...", "hat": "..x...x...x...x."},
         {"blip": "x..x..x.x..x..x.", "snare": "....x.......x..."}),
        76, 0.65, Mix(0.9, 0.6, 0.7, 0.6, 8500, 0.06, 0.3, echo=0.15),
    ),
    "drum and bass": Style(
        (152, 178), (MINOR, DORIAN), ((0, 0, 5, 6), (0, 5, 3, 6), (0, 2, 3, 3)), SEVENTH,
        ("saw", "bell"), ("pad", "stab"), ("fat bass", "sub bass"),
        ("x...............", "x.....x.....x..."), ("0.....0...4.....", "0..........0.6.."),
        ({"kick": "x.........x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
         {"kick": "x..x......x.....", "snare": "....x..o.o..x..o", "hat": "xoxoxoxoxoxoxoxo"}),
        72, 0.3, Mix(0.45, 0.5, 1.0, 1.0, 8500, 0.2, 0.9, echo=0.3),
    ),
    "dub": Style(
        (68, 92), (MINOR, DORIAN), ((0, 0, 3, 3), (0, 6, 5, 6), (0, 3, 0, 4)), TRIAD,
        ("reed", "organ"), ("organ", "guitar"), ("sub bass", "upright bass"),
        ("....x.......x...", "..x...x...x...x."), ("0..0..2.4.....0.", "....0.0.4...2.0."),
        ({"kick": "........x.......", "rim": "........x.......", "hat": "x.o.x.o.x.o.x.o."},
         {"kick": "x...x...x...x...", "snare": "........x.......", "hat": "..x...x...x...x."}),
        67, 0.3, Mix(0.5, 0.7, 1.0, 0.7, 4500, 0.35, 1.2, echo=0.6, swing=0.2, hiss=0.01),
    ),
    "folk": Style(
        (84, 128), (MAJOR, MIXOLYDIAN), ((0, 3, 0, 4), (0, 4, 5, 3), (0, 6, 3, 0)), TRIAD,
        ("flute", "reed", "nylon guitar"), ("guitar", "nylon guitar"), ("upright bass",),
        ("0.2.4.2.7.4.2.4.", "x...x.xo..x.x.x.", "0.4.7.4.2.4.7.4."),
        ("0.......4.......", "0.......0.4....."),
        ({"shaker": "x.o.x.o.x.o.x.o."}, {"kick": "x.......x.......", "brush": "....x.......x..."}),
        71, 0.5, Mix(0.7, 1.0, 0.6, 0.4, 8000, 0.08, 0.4),
    ),
    "house": Style(
        (114, 130), (MINOR, DORIAN), ((0, 5, 2, 6), (0, 3, 0, 4), (0, 0, 3, 5)), SEVENTH,
        ("saw", "electric piano"), ("stab", "organ"), ("fat bass", "sub bass"),
        ("..x...x...x...x.", "x..x..x...x..x.."), ("..0...0...0...7.", "0..0..0.0..0..4."),
        ({"kick": "x...x...x...x...", "clap": "....x.......x...", "hat": "..x...x...x...x."},
         {"kick": "x...x...x...x...", "rim": "...x..x....x..x.", "shaker": "xoxoxoxoxoxoxoxo"}),
        72, 0.35, Mix(0.5, 0.7, 0.8, 0.9, 7500, 0.2, 0.8, echo=0.3, pump=0.5),
    ),
    "lo-fi": Style(
        (68, 94), (DORIAN, MAJOR), ((1, 4, 0, 5), (0, 5, 1, 4), (3, 2, 1, 0)), SEVENTH,
        ("electric piano", "nylon guitar", "bell"), ("electric piano", "piano"), ("upright bass", "sub bass"),
        ("x.........x.....", "x......x........"), ("0.....0.4.......", "0.........4...2."),
        ({"kick": "x.....x...x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
         {"kick": "x......x..x.....", "rim": "....x.......x...", "shaker": "x.o.x.o.x.o.x.o."}),
        70, 0.35, Mix(0.5, 0.9, 0.7, 0.7, 3800, 0.2, 0.7, swing=0.5, hiss=0.008, drive=0.6),
    ),
    "metal": Style(
        (118, 176), (PHRYGIAN, MINOR), ((0, 0, 1, 0), (0, 5, 6, 0), (0, 0, 3, 1)), POWER,
        ("distorted guitar", "saw"), ("distorted guitar",), ("fat bass", "distorted guitar"),
        ("x.xxx.xxx.xxx.x.", "x..x..x..x..x.x.", "x.......x...x..."),
        ("0.000.000.000.0.", "0...0...0...0..."),
        ({"kick": "x.xxx.xxx.xxx.xx", "snare": "....x.......x...", "cymbal": "x...x...x...x..."},
         {"kick": "x..x..x.x..x..x.", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."}),
        69, 0.45, Mix(0.6, 1.0, 0.8, 0.8, 7500, 0.1, 0.6, drive=1.2),
    ),
    "swing": Style(
        (104, 176), (MAJOR, MIXOLYDIAN, DORIAN), ((1, 4, 0, 5), (0, 5, 1, 4), (0, 3, 1, 4)), SEVENTH,
        ("reed", "piano", "flute"), ("piano", "guitar"), ("upright bass",),
        ("x.....x.........", "....x.......x...", "x.........x....."),
        ("0...2...4...6...", "0...4...7...4..."),
        ({"cymbal": "x...x.x.x...x.x.", "hat": "....x.......x..."},
         {"brush": "x.o.x.o.x.o.x.o.", "kick": "o.......o......."}),
        70, 0.5, Mix(0.8, 0.6, 0.8, 0.45, 6500, 0.15, 0.6, swing=0.6),
    ),
    "waltz": Style(
        (88, 156), (MAJOR, MINOR), ((0, 4, 4, 0), (0, 3, 4, 0), (0, 5, 1, 4)), TRIAD,
        ("strings", "flute", "piano"), ("piano", "strings", "nylon guitar"), ("upright bass", "strings"),
        ("....x...x...", "0.2.4.7.4.2."), ("0...........", "0.......4..."),
        ({}, {"brush": "....o...o..."}),
        73, 0.45, Mix(0.9, 0.7, 0.6, 0.2, 5000, 0.35, 1.5),
    ),
}  # fmt: skip
