"""API keys: those that the environment of the driver lists, and their comparison.

The driver reads them and ships them to the replicas within the pickled deployment. Ray Serve displays neither
that nor its arguments, while it displays `user_config` and `runtime_env`.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Collection

from songray.errors import InvalidOption

VARIABLE = "SONGRAY_KEYS"


class ApiKeys(frozenset[str]):
    """Keys that do not show in logs. Without any, the service needs no key."""

    def __repr__(self) -> str:
        return f"<{len(self)} API keys>"


def environment_keys() -> ApiKeys:
    """The keys in SONGRAY_KEYS, which commas separate.

    Raises InvalidOption where a key is not ASCII, since an HTTP header could not carry it.
    """
    keys = ApiKeys(key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip())
    if not all(key.isascii() for key in keys):
        raise InvalidOption(f"{VARIABLE} contains a key with non-ASCII characters: choose another one")
    return keys


def keys_for(host: str, is_open: bool) -> ApiKeys:
    """The keys in SONGRAY_KEYS, for a service that listens on `host`. Raises InvalidOption where there are
    none although other machines can reach it, unless it is meant to be open."""
    keys = environment_keys()
    if not (keys or is_open or is_loopback(host)):
        raise InvalidOption(
            f"--host {host} accepts requests from other machines, and {VARIABLE} lists no keys: "
            f"set {VARIABLE}=key1,key2, or pass --open to answer requests without a key"
        )
    return keys


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_key(candidate: str, keys: Collection[str]) -> bool:
    """Whether the candidate equals one of the keys, in a time that does not depend on the matching prefix."""
    return any([hmac.compare_digest(candidate.encode(), key.encode()) for key in keys])
