"""Tempo, key and mode, as catalogues and the tags of files write them."""

from __future__ import annotations

import math
import re

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MODES = {"major": "major", "maj": "major", "dur": "major", "1": "major", "": "major",
         "minor": "minor", "min": "minor", "moll": "minor", "m": "minor", "0": "minor"}  # fmt: skip
KEY = re.compile(r"([A-G])\s*(#|♯|b|♭|sharp|flat)?\s*(maj(?:or)?|min(?:or)?|(?-i:m)|dur|moll)?",
                 re.IGNORECASE)  # fmt: skip
CAMELOT = re.compile(r"(1[0-2]|[1-9])([ABab])")  # positions on the circle of fifths
SLOWEST_BPM, FASTEST_BPM = 20.0, 400.0


def tempo(text: str | float | None) -> float | None:
    """Beats a minute. None where it is unknown, which many files write as 0. Raises ValueError."""
    if text is None or not str(text).strip():
        return None
    bpm = float(text)
    return bpm if math.isfinite(bpm) and SLOWEST_BPM <= bpm <= FASTEST_BPM else None


def tonality(key: str | None, mode: str | None = None) -> tuple[str | None, str | None]:
    """Pitch class and mode of "Am", "F# minor", "Bb", "8A", or of a number from 0 (C) to 11, beside which the
    mode may be stated. A key without a mode is major, but a number alone says nothing of it. (None, None)
    where the key is unknown. Raises ValueError for any other text."""
    text, stated = (key or "").strip(), (mode or "").strip().lower()
    if not text or text.lower() in ("o", "off", "-1", "none"):  # "o" is ID3's sign for off key
        return None, None
    if stated not in MODES:
        raise ValueError(f"mode {mode!r} is neither major nor minor")
    if match := CAMELOT.fullmatch(text):
        # 8B is C major, and each further number a fifth higher; A has the relative minor.
        tonic = (7 * (int(match[1]) - 8) + (9 if match[2].upper() == "A" else 0)) % 12
        return PITCH_CLASSES[tonic], "minor" if match[2].upper() == "A" else "major"
    if text.isdigit() and int(text) < 12:
        return PITCH_CLASSES[int(text)], MODES[stated] if stated else None
    match = KEY.fullmatch(text)
    if match is None:
        raise ValueError(f"key {key!r} is not like A, Am, F# minor, Bb, 8A or a number from 0 to 11")
    letter, accidental, written = (part or "" for part in match.groups())
    shift = {"": 0, "#": 1, "♯": 1, "sharp": 1}.get(accidental.lower(), -1)
    tonic = (PITCH_CLASSES.index(letter.upper()) + shift) % 12
    return PITCH_CLASSES[tonic], MODES[stated or written.lower()]
