"""The page at /: its files lie in the folder page, and its Content Security Policy admits these alone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("songray.service").joinpath("page")))
HTML = FOLDER.joinpath("index.html").read_text("utf-8")


def policy(hosts: Sequence[str] | None) -> str:
    """The Content Security Policy, with the hosts from which audio is played; None: any host."""
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            f"media-src 'self' {' '.join(['http:', 'https:'] if hosts is None else hosts)}".rstrip(),
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
