"""What is fitted in one pass over clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stored_spectrograms import store_spectrograms

from songray.audio.spectrograms import SPECS, from_bytes
from songray.learning import encoder, fit
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.split import Split
from songray.learning.train import TrainConfig, train
from songray.learning.windows import embed_clips
from songray.library import Library


@pytest.mark.usefixtures("cluster")
def test_of_many_files_a_few_are_read_for_the_scale(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts = (0, 10, 20)
    for first in firsts:
        store_spectrograms(library, 10, first)
    rows = library.table("spectrograms", "default").read(["track_key", "mel128"])
    keys = rows["track_key"].to_numpy()
    train_keys = np.sort(keys)[::2]
    model = build(MODELS["mfcc"]())
    clips = [from_bytes(cell.as_py(), SPECS["mel128"]) for cell in rows["mel128"]]
    used = [[n for n in range(first, first + 10) if keys[n] in train_keys] for first in firsts]
    means = [embed_clips(model, [clips[number] for number in numbers]).mean(0) for numbers in used]
    monkeypatch.setattr(fit, "SCALE_FILES", 1)
    fitted = fit.fit_scale(library, "default", model, Split(train_keys, keys[:0]), "mean")
    assert sum(np.allclose(fitted.mean, mean) for mean in means) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pca_is_fitted_by_the_training_stage(library: Library) -> None:
    store_spectrograms(library, 20)
    run = train(library, "pca", MODELS["pca"](components=4), TrainConfig())
    model = encoder.load_model(library, run).model
    assert torch.allclose(model.components @ model.components.T, torch.eye(4), atol=1e-4)
