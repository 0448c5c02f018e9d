"""Makes a library with songray as it was at commit 396240d: run with that checkout first on PYTHONPATH.

    python earlier_version.py MUSIC LIBRARY [MODEL …]

The models that are named are trained for an epoch; the others keep their initial weights. It uses the names
of that commit; test_earlier_library.py reads the result with the current code."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import ray
from songray.catalog import CrawlConfig, crawl
from songray.embeddings import EmbedConfig, embed
from songray.fitting import fit_scale
from songray.index import IndexConfig, index
from songray.latents import FactorizeConfig, factorize
from songray.loop import seeded
from songray.models import MODELS
from songray.models.base import LearningConfig
from songray.previews import DownloadConfig, download
from songray.runs import Run
from songray.sources.manifest import ManifestSource
from songray.spectrograms import TransformConfig, transform
from songray.training import TrainConfig, hold_out, train

from songray import runs
from songray.command import open_library
from songray.library import Library

SMALL = {
    "ali": {"width": 2, "latent": 8, "batch_size": 4, "generator_turns": 2},
    "cae": {"latent": 8, "dense_units": 16, "dense_layers": 1, "batch_size": 4},
    "cae2d": {"batch_size": 4},
    "contrastive": {"widths": (8, 16), "batch_size": 4},
    "dualaxis": {"latent": 8, "batch_size": 4},
    "factors": {"factors": 4, "dense_units": 16, "batch_size": 4},
    "infogan": {"batch_size": 4, "codes": 4},
    "vae": {"latent": 4, "batch_size": 4},
    "pca": {"components": 4},
}
EPOCHS = {name: {"epochs": 1} for name in MODELS if hasattr(MODELS[name], "epochs")}
EMBEDDED = ("contrastive", "mfcc")  # also indexed


def main(music: Path, place: str, trained: list[str]) -> None:
    library = open_library(place)
    print(crawl(library, ManifestSource(str(music)), CrawlConfig()))
    print(download(library, DownloadConfig()))
    print(transform(library, TransformConfig(specs=("mel128", "linear257", "mel128-8k", "mel96"))))
    print(factorize(library, FactorizeConfig(factors=4)))
    for name in MODELS:
        config = MODELS[name](**SMALL.get(name, {}), **EPOCHS.get(name, {}))
        if name in trained or not isinstance(config, LearningConfig):
            run = train(library, name, config, TrainConfig())
        else:
            run = store_untrained(library, name, config)
        print(f"run {run.name}")
        if name in EMBEDDED:
            print(embed(library, EmbedConfig(run=run.name, actors=1)))
            print(index(library, IndexConfig(run=run.name, links=8)))
    ray.shutdown()


def store_untrained(library: Library, name: str, config: LearningConfig) -> Run:
    """What `train` stores, with the initial weights: a training of each model would take minutes."""
    training = TrainConfig()
    options = dataclasses.asdict(config)
    shaping = {"model": name, "model_config": options, "config": training.shaping}
    run = runs.default_name(name, shaping)
    library.table("runs", run).claim(shaping)
    parts = hold_out(library, run, training)
    encoder = fit_scale(library, "default", seeded(config, 0), parts, "mean")
    tracks = {"train": parts.train.size, "validation": parts.validation.size}
    made_with, curve = runs.made_with(), [{"epoch": 1.0, "validation_loss": 1.0}]
    record = Run(run, name, options, training.shaping, "default", tracks, "", made_with, curve[0], curve)
    runs.save(library, record, encoder)
    return record


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
