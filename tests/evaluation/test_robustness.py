"""A preview of a song beside what a run embeds of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import tone
from learning.small_models import small

from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.folder import FolderSource
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.evaluation.robustness import PREVIEW
from songray.learning.embed import EmbedConfig, embed
from songray.learning.train import TrainConfig, train
from songray.library import Library


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_previews_of_long_songs_are_compared_with_the_songs(library: Library, tmp_path: Path) -> None:
    """Songs of 70 s, and one of 20 s, of which a preview has as much as the run embeds."""
    for number, seconds in enumerate((70, 70, 70, 20)):
        tone(tmp_path / f"{number}.flac", seconds=seconds, hertz=200 + 150 * number)
    crawl(library, FolderSource(tmp_path), CrawlConfig())
    download(library, DownloadConfig())
    transform(library, TransformConfig())
    train(library, "raw", small("raw"), TrainConfig(run="raw"))
    embed(library, EmbedConfig(run="raw"))
    evaluation = evaluate(library, EvaluateConfig(parts=("robustness",)))
    found = {score.task: score for score in evaluation.scores["raw"]}
    assert (found[PREVIEW].queries, found["12-dB-quieter"].queries) == (3, 4)
    assert found[PREVIEW].metrics["itself"].mean == 1
    assert np.isclose(found[PREVIEW].metrics["cosine"].mean, 1, atol=0.05)  # the tones do not change
