"""Audio of tracks for browsers: links that expire, and what a browser can play.

`<audio>` sends no header, and a key in a URL would be logged: a link has a signature of the track and of the
time at which it expires. A service without keys answers to unsigned links as well.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import PurePath
from urllib.parse import quote, urlencode

from songray.service.api_keys import ApiKeys

PATH = "/audio/"
LINK_SECONDS = 3600  # for which a link is valid, at least
PLAYABLE = {  # suffixes of files that browsers play
    ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".m4b": "audio/mp4", ".mp4": "audio/mp4",
    ".aac": "audio/aac", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg",
    ".opus": "audio/ogg", ".wav": "audio/wav",
}  # fmt: skip


class AudioLinks:
    """Creates and verifies links. All replicas have the same secret, since it is derived from the keys."""

    def __init__(self, keys: ApiKeys) -> None:
        text = "\n".join(sorted(keys))
        self._secret = hashlib.sha256(f"songray audio\n{text}".encode()).digest() if keys else b""

    def create(self, track_id: str) -> str:
        """The path and query of a link, which stays the same for up to an hour, so that browsers cache it."""
        expires = (int(time.time()) // LINK_SECONDS + 2) * LINK_SECONDS
        query = {"expires": expires, "signature": self._sign(track_id, expires)} if self._secret else {}
        return f"{PATH}{quote(track_id, safe='')}" + (f"?{urlencode(query)}" if query else "")

    def verify(self, track_id: str, expires: int, signature: str) -> bool:
        """Whether a link was created here, and has not expired."""
        if not self._secret:
            return True
        is_signed = hmac.compare_digest(self._sign(track_id, expires).encode(), signature.encode())
        return is_signed and time.time() < expires

    def _sign(self, track_id: str, expires: int) -> str:
        return hmac.new(self._secret, f"{expires}\n{track_id}".encode(), "sha256").hexdigest()


def media_type(path: str) -> str | None:
    """The media type of a file that browsers play, by its suffix; None of others."""
    return PLAYABLE.get(PurePath(path).suffix.lower())
