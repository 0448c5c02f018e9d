"""API keys: those that the environment lists, and their comparison."""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection

from songray.errors import InvalidOption

VARIABLE = "SONGRAY_KEYS"


def environment_keys() -> frozenset[str]:
    """The keys in SONGRAY_KEYS, which commas separate; none: the service needs no key.

    Raises InvalidOption where a key is not ASCII, since an HTTP header could not carry it.
    """
    keys = frozenset(key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip())
    if not all(key.isascii() for key in keys):
        raise InvalidOption(f"{VARIABLE} contains a key with non-ASCII characters: choose another one")
    return keys


def is_key(candidate: str, keys: Collection[str]) -> bool:
    """Whether the candidate equals one of the keys, in a time that does not depend on the matching prefix."""
    return any([hmac.compare_digest(candidate.encode(), key.encode()) for key in keys])
