"""The names of all sources. An id is "<name>:<id within the source>"."""

from __future__ import annotations

SOURCE_NAMES = ("folder", "manifest", "deezer", "itunes", "spotify", "synthetic")
