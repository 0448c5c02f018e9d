"""The page at /: its files lie in the folder page, and its Content Security Policy admits these alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("songray.service").joinpath("page")))
HTML = FOLDER.joinpath("index.html").read_text("utf-8")
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src 'self' http: https:",  # files of folders; previews, on the hosts of their sources
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
