"""The decoded audio of the tracks of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from songray.audio.excerpt import Excerpt
from songray.audio.extract import stderr_silenced
from songray.errors import AudioError
from songray.evaluation.sample import Sample
from songray.library import Library

if TYPE_CHECKING:  # the decoders are imported in functions: jobs import this module
    from songray.audio.decode import Recording

READ_TOGETHER = 32  # previews


def recordings(
    library: Library, sample: Sample, positions: Sequence[int], excerpt: Excerpt
) -> Iterator[tuple[int, Recording]]:
    """The position and the excerpt of each of some tracks, given by position, that can be decoded."""
    from songray.audio.decode import decode

    columns = ["track_id", "audio", "location", "error"]
    for start in range(0, len(positions), READ_TOGETHER):
        together = positions[start : start + READ_TOGETHER]
        rows = library.table("previews").newest_rows(np.sort(sample.tracks[list(together)]), columns)
        previews = {row["track_id"]: row for row in rows.to_pylist() if row["error"] is None}
        for position in together:
            if (preview := previews.get(sample.rows[position]["track_id"])) is not None:
                sound = preview["location"] if preview["audio"] is None else preview["audio"]
                with suppress(AudioError), stderr_silenced():
                    yield position, decode(sound, excerpt)
