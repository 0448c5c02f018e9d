"""The page at /, and the Content Security Policy that admits its own script and style alone."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

HTML = files("songray.service").joinpath("page.html").read_text("utf-8")


def _hash_of(element: str) -> str:
    """The source expression of the one inline element of that name."""
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", HTML, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash_of('script')}",
        f"style-src {_hash_of('style')}",
        "connect-src 'self'",
        "media-src http: https:",  # previews, on the hosts of their sources
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
