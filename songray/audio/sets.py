"""What a set of spectrograms was made with, and which tracks are in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from songray.audio.excerpt import Excerpt
from songray.audio.extract import Extraction
from songray.audio.spectrograms import DEFAULT_SPECS
from songray.keys import Interval, Keys
from songray.library import Library
from songray.storage import read_json

DEFAULT = "default"  # the set of a new library


def specs_of(library: Library, set_name: str) -> tuple[str, ...]:
    """The spectrograms of a set; where it does not exist yet, those that it will have by default."""
    return tuple(made_by(library, set_name).get("specs", DEFAULT_SPECS))


def usable_keys(library: Library, set_name: str) -> Callable[[Interval], Keys]:
    """A function that returns the keys in an interval, sorted, of the tracks that could be decoded."""
    spectrograms = library.table("spectrograms", set_name)
    index = spectrograms.key_index()
    return lambda interval: spectrograms.usable_between(index, interval)[0]


def excerpt_of(library: Library, set_name: str) -> Excerpt:
    """The excerpt of the tracks of a set; where it does not exist yet, the one that it will have by default:
    that of the set `default`, since only models that embed the same seconds can be joined."""
    made = made_by(library, set_name) or made_by(library, DEFAULT)
    return Excerpt(**made.get("excerpt", {}))


def extraction_of(library: Library, set_name: str, specs: tuple[str, ...]) -> Extraction:
    """What is computed of a track that a model of this set embeds, and that the set need not have."""
    return Extraction(specs, excerpt_of(library, set_name))


def made_by(library: Library, set_name: str) -> dict[str, Any]:
    """The specs and the excerpt of a set; empty where it does not exist yet."""
    path = f"{library.table('spectrograms', set_name).path}/_made_by.json"
    return read_json(library.filesystem, path) or {}
