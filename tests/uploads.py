"""Uploads that the service's encoder embeds under Ray Serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from ray import serve

from songray.library import Library, Vectors
from songray.service.app import QUIET, shut_down
from songray.service.uploads import UploadEncoder


@contextmanager
def upload_encoder(library: Library) -> Iterator[Callable[[str, list[bytes]], Vectors]]:
    """The vectors by a run of sounds that are uploaded at once, (sounds, dimension)."""
    serve.start(http_options={"location": "NoServer"}, logging_config=QUIET)
    try:
        encoder = serve.run(serve.deployment(UploadEncoder).bind(library), name="uploads")

        def embed_uploads(run: str, sounds: list[bytes]) -> Vectors:
            responses = [encoder.embed.remote(sound, run) for sound in sounds]
            return np.stack([response.result().vector for response in responses])

        yield embed_uploads
    finally:
        shut_down()
