"""The audio of a synthetic song: thirty seconds with harmony, a melody and drums, as MP3.

A style sets the parameters; the artist, the album and the song vary them, each less than the one before.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, TypeVar

import av
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import fft  # in single precision several times as fast as NumPy's

from songray.catalogue.sources.synthetic.composition import (
    VELOCITY,
    Bar,
    Key,
    Note,
    accompaniment,
    form,
    melody,
)
from songray.catalogue.sources.synthetic.songs import SONG_SECONDS, Song
from songray.catalogue.sources.synthetic.styles import DRUMS, STYLES, TIMBRES, Drum, Mix, Style, Timbre

SAMPLE_RATE = 22_050
BITS_PER_SECOND = 64_000
SAMPLES = int(SONG_SECONDS * SAMPLE_RATE)
TRANSFORM_SAMPLES = 3 << 18  # the song and 5 s of what rings on, in a length at which the FFT is fast
RELEASE_SECONDS = 0.08
LEVEL_DB, LEVEL_SPREAD_DB = -17.0, 1.2  # the root mean square, below full scale
FADE_SECONDS = 0.02
PEAK = 0.8  # leaves room for the overshoot of the lossy encoding

Signal: TypeAlias = NDArray[np.float32]
Variable = TypeVar("Variable", "Timbre", "Drum", "Mix")


ARTIST_SPREAD, ALBUM_SPREAD, SONG_SPREAD = 0.17, 0.1, 0.08


@dataclass(frozen=True)
class Sound:
    """What an artist's songs share, as varied by an album."""

    lead: Timbre
    chords: Timbre
    bass: Timbre
    drums: dict[str, Drum]
    drum_pattern: dict[str, str]
    mix: Mix
    tonic: int  # pitch class, 0 is C
    pace: float  # where in the style's range of tempos, 0 to 1


@dataclass(frozen=True)
class Score:
    """What a song plays."""

    style: Style
    sound: Sound
    tempo_bpm: float
    step_seconds: float  # of a sixteenth
    key: Key
    bars: list[Bar]
    chord_pattern: str
    bass_pattern: str


def render(seed: int, song: Song) -> bytes:
    """One song as an MP3 file: mono, 30 s, the same bytes for the same arguments.

    Raises KeyError for an unknown style.
    """
    frame = av.AudioFrame.from_ndarray(samples(seed, song)[None], "fltp", "mono")
    frame.rate = SAMPLE_RATE
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as container:
        fast = {"compression_level": "7"}  # of LAME's search, at half the time of its default
        stream = container.add_stream(
            "libmp3lame", SAMPLE_RATE, fast, layout="mono", bit_rate=BITS_PER_SECOND
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def samples(seed: int, song: Song) -> Signal:
    """One song before the encoding, within [-1, 1] at SAMPLE_RATE."""
    score, random = _score(seed, song)
    parts = _perform(score, random)
    mix = _varied(score.sound.mix, SONG_SPREAD, random)
    return _master(parts, mix, score.tempo_bpm, random)  # (samples,)


def tempo_and_key(seed: int, song: Song) -> tuple[float, Key]:
    """Beats a minute and the key of a song. Raises KeyError for an unknown style."""
    score, _ = _score(seed, song)
    return score.tempo_bpm, score.key


def _varied(record: Variable, spread: float, random: Generator) -> Variable:
    """The record with each number scaled by a log-normal factor; zeros stay."""
    changed: dict[str, Any] = {
        name: value * float(random.lognormal(0, spread)) for name, value in asdict(record).items()
    }
    return replace(record, **changed)


def _album_sound(seed: int, song: Song, style: Style) -> Sound:
    artist, album = default_rng((seed, 0, song.artist)), default_rng((seed, 1, song.album))

    def timbre(names: tuple[str, ...]) -> Timbre:
        return _varied(_varied(TIMBRES[artist.choice(names)], ARTIST_SPREAD, artist), ALBUM_SPREAD, album)

    pattern = style.drum_patterns[artist.integers(len(style.drum_patterns))]
    return Sound(
        lead=timbre(style.lead_timbres),
        chords=timbre(style.chord_timbres),
        bass=timbre(style.bass_timbres),
        drums={name: _varied(DRUMS[name], ARTIST_SPREAD, artist) for name in pattern},
        drum_pattern=pattern,
        mix=_varied(_varied(style.mix, ARTIST_SPREAD, artist), ALBUM_SPREAD, album),
        tonic=int(artist.integers(12)),
        pace=float(artist.random()),
    )


def _score(seed: int, song: Song) -> tuple[Score, Generator]:
    """What a song plays, and the generator from which its performance goes on."""
    style = STYLES[song.style]
    sound = _album_sound(seed, song, style)
    random = default_rng((seed, 2, song.number))
    tonic = sound.tonic if random.random() < 0.5 else int(random.integers(12))
    pace = np.clip(sound.pace + random.normal(0, 0.15), 0, 1)
    tempo_bpm = float(style.tempo_bpm[0] + pace * (style.tempo_bpm[1] - style.tempo_bpm[0]))

    def pick(choices: tuple[Any, ...]) -> Any:
        return choices[random.integers(len(choices))]

    chord_pattern, bass_pattern = pick(style.chord_patterns), pick(style.bass_patterns)
    step_seconds = 60 / tempo_bpm / 4
    bars = list(form(int(SONG_SECONDS / step_seconds / len(bass_pattern)) + 1, pick, style))
    key = Key(tonic, pick(style.scales))
    return Score(style, sound, tempo_bpm, step_seconds, key, bars, chord_pattern, bass_pattern), random


def _perform(score: Score, random: Generator) -> list[Signal]:
    """The lead, chords, bass and drums, each (SAMPLES,)."""
    style, sound, key, bars, bass_pattern = (
        score.style, score.sound, score.key, score.bars, score.bass_pattern
    )  # fmt: skip
    onset = _groove(score.step_seconds, sound.mix.swing)
    lead = melody(style, key, bars, len(bass_pattern), random)
    chords = accompaniment("C", score.chord_pattern, style.chord, key, bars, style.register - 22)
    bass = accompaniment("B", bass_pattern, style.chord, key, bars, 33)
    return [
        _play(lead, sound.lead, onset, random),
        _play(chords, sound.chords, onset, random),
        _play(bass, sound.bass, onset, random),
        _beat(sound, bars, len(bass_pattern), onset, random),
    ]


def _groove(step_seconds: float, swing: float) -> Callable[[int], int]:
    """When a step begins, in samples; off-beat eighths come late by the swing."""
    return lambda step: int((step + swing * (step % 4 == 2)) * step_seconds * SAMPLE_RATE)


def _play(notes: Iterable[Note], timbre: Timbre, onset: Callable[[int], int], random: Generator) -> Signal:
    """Each different tone is computed once and added wherever it sounds."""
    part = np.zeros(SAMPLES, np.float32)
    tones: dict[tuple[int, int], Signal] = {}
    for note in notes:
        sounding = note.midi, note.steps
        if sounding not in tones:
            tones[sounding] = _tone(timbre, note.midi, onset(4 * note.steps) / 4 / SAMPLE_RATE, random)
        _add(part, onset(note.step), tones[sounding], note.velocity)
    return part


def _beat(
    sound: Sound, bars: list[Bar], bar_steps: int, onset: Callable[[int], int], random: Generator
) -> Signal:
    """The drum pattern, with soft extra strokes of its own and a fill before each change of section."""
    part = np.zeros(SAMPLES, np.float32)
    following = [bar.layers for bar in bars[1:]] + [""]
    for name, pattern in sound.drum_pattern.items():
        stroke = _strike(sound.drums[name], random)
        ghosts = np.where(random.random(bar_steps) < 0.06, 0.3, 0)
        velocities = np.maximum([VELOCITY.get(sign, 0.0) for sign in pattern], ghosts)
        for number, bar in enumerate(bars):
            fill = (np.arange(bar_steps) >= bar_steps - 4) * (bar.layers != following[number]) * 0.6
            for step in np.flatnonzero(np.maximum(velocities, fill)) if "D" in bar.layers else ():
                loudness = max(velocities[step], fill[step]) * random.uniform(0.8, 1.0)
                _add(part, onset(number * bar_steps + int(step)), stroke, loudness)
    return part


def _add(part: Signal, start: int, sound: Signal, loudness: float) -> None:
    audible = sound[: max(SAMPLES - start, 0)]
    part[start : start + len(audible)] += np.float32(loudness) * audible


def _seconds_axis(seconds: float) -> Signal:
    return np.arange(int(seconds * SAMPLE_RATE), dtype=np.float32) / np.float32(SAMPLE_RATE)


def _tone(timbre: Timbre, midi: int, seconds: float, random: Generator) -> Signal:
    """One note (samples,): additive synthesis with frequency modulation, an envelope and a release."""
    hz = 440 * 2 ** ((midi - 69) / 12)
    time = _seconds_axis(seconds + RELEASE_SECONDS)
    fading = np.exp(-time / timbre.decay_seconds)
    phase = 2 * np.pi * hz * time + timbre.vibrato * hz / 5 * np.sin(2 * np.pi * 5 * time)
    phase += timbre.index * fading * np.sin(2 * np.pi * hz * timbre.ratio * time)
    wave = _harmonics(timbre, hz, phase, time)
    if timbre.detune:
        wave += _harmonics(timbre, hz, phase * (1 + timbre.detune), time)
    wave += timbre.breath * random.standard_normal(len(time), np.float32)
    if timbre.drive:
        wave = np.tanh(timbre.drive * wave)
    release = np.clip((seconds + RELEASE_SECONDS - time) / RELEASE_SECONDS, 0, 1)
    return np.asarray(wave * fading * np.minimum(time / timbre.attack_seconds, 1) * release, np.float32)


def _harmonics(timbre: Timbre, hz: float, phase: Signal, time: Signal) -> Signal:
    """The sum (samples,) of the partials below the Nyquist frequency, the higher ones dying faster."""
    order = np.arange(1, round(timbre.partials) + 2, dtype=np.float32)[:, None]  # (partials, 1)
    order = order[: max(1, int(0.45 * SAMPLE_RATE / hz))]
    amplitude = order**-timbre.slope
    amplitude[1::2] *= min(timbre.even, 1)
    if timbre.damping:
        amplitude = amplitude * np.exp((1 - order) * (timbre.damping / timbre.decay_seconds) * time)
    rate = order * np.sqrt(1 + timbre.stretch * order**2)
    return np.asarray((amplitude * np.sin(rate * phase)).sum(axis=0), np.float32)


def _strike(drum: Drum, random: Generator) -> Signal:
    """One stroke (samples,)."""
    time = _seconds_axis(6 * drum.decay_seconds)
    fall_seconds = 0.03
    cycles = drum.hz * time + drum.fall_hz * fall_seconds * (1 - np.exp(-time / fall_seconds))
    noise = fft.rfft(random.standard_normal(len(time), np.float32))
    noise *= _low_pass(len(time), drum.high_hz) * (1 - _low_pass(len(time), drum.low_hz))
    share = min(drum.noise, 1)
    wave = (1 - share) * np.sin(2 * np.pi * cycles) + share * fft.irfft(noise, len(time))
    return np.asarray(wave * np.exp(-time / drum.decay_seconds), np.float32)


def _low_pass(length: int, cutoff_hz: float) -> Signal:
    """The gain (length // 2 + 1,) of a second-order Butterworth filter at the frequencies of rfft."""
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE).astype(np.float32)
    return np.asarray(1 / np.sqrt(1 + (hz / np.float32(cutoff_hz)) ** 4), np.float32)


def _master(parts: list[Signal], mix: Mix, tempo_bpm: float, random: Generator) -> Signal:
    """The parts at their levels through room, tone control and limiter, (SAMPLES,): about equally loud."""
    lead, chords, bass, drums = (
        np.float32(level / max(_root_mean_square(part), 1e-4)) * part
        for level, part in zip((mix.lead, mix.chords, mix.bass, mix.drums), parts, strict=True)
    )
    beat_seconds = 60 / tempo_bpm
    time = _seconds_axis(SONG_SECONDS)
    dry = lead + chords + bass
    if mix.pump:
        dry *= 1 - min(mix.pump, 0.9) * np.exp(-4 * (time / beat_seconds % 1))
    dry += drums
    dry += mix.hiss * random.standard_normal(SAMPLES, np.float32)
    room = _room(mix, beat_seconds, random)
    spectrum = fft.rfft(dry, TRANSFORM_SAMPLES) * fft.rfft(room, TRANSFORM_SAMPLES)
    spectrum *= _low_pass(TRANSFORM_SAMPLES, mix.cutoff_hz)
    whole = fft.irfft(spectrum, TRANSFORM_SAMPLES)[:SAMPLES]
    whole = np.tanh(np.float32(mix.drive / _root_mean_square(whole)) * whole)
    level = 10 ** (random.normal(LEVEL_DB, LEVEL_SPREAD_DB) / 20)
    whole = PEAK * np.tanh(np.float32(level / _root_mean_square(whole) / PEAK) * whole)
    return np.asarray(whole * np.clip(np.minimum(time, SONG_SECONDS - time) / FADE_SECONDS, 0, 1), np.float32)


def _root_mean_square(part: Signal) -> float:
    return float(np.sqrt(np.mean(part * part)))


def _room(mix: Mix, beat_seconds: float, random: Generator) -> Signal:
    """Impulse response (samples,) of the direct sound, a decaying reverberation and two echoes."""
    time = _seconds_axis(max(mix.tail_seconds, 2 * beat_seconds))
    tail = random.standard_normal(len(time), np.float32) * np.exp(-5 / mix.tail_seconds * time)
    response = np.asarray(mix.wet / len(time) ** 0.5 / _root_mean_square(tail) * tail, np.float32)
    response[0] = 1
    for repeat in (1, 2):
        response[int(0.75 * repeat * beat_seconds * SAMPLE_RATE)] += 0.6 * min(mix.echo, 0.9) ** repeat
    return response
