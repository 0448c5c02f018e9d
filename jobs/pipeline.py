"""Run all stages in order on one machine: from a catalogue to recommendations over HTTP.

    python jobs/pipeline.py --source folder --folder ~/Music

Started again, it does only what is new, and serves.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import httpx

from songray.catalog import CrawlConfig, crawl
from songray.command import LibraryFlag, open_library, run
from songray.embeddings import EmbedConfig, embed
from songray.evaluation import EvaluateConfig, evaluate
from songray.index import Index, IndexConfig, index
from songray.latents import FactorizeConfig, factorize
from songray.library import DEFAULT_LIBRARY
from songray.models import MODELS
from songray.previews import DownloadConfig, download
from songray.recommender import examples
from songray.service.app import ServeConfig, served, wait_for_end
from songray.sources import synthetic
from songray.spectrograms import TransformConfig, transform
from songray.training import TrainConfig, declared, train


def main(
    crawl_config: CrawlConfig = CrawlConfig(),
    model: Literal[tuple(MODELS)] = "contrastive",
    max_seconds: float = 600.0,
    serve_config: ServeConfig = ServeConfig(),
    serve: bool = True,
    library: LibraryFlag = DEFAULT_LIBRARY,
) -> None:
    """
    Args:
        model: What turns sound into vectors.
        max_seconds: Train for at most so long; jobs/train.py trains in full.
        serve: Stay and answer over HTTP; without, stop after printing some recommendations.
    """
    place = open_library(library)
    is_synthetic = crawl_config.source == "synthetic"
    with synthetic.served(crawl_config.synthetic) if is_synthetic else nullcontext():
        print(crawl(place, crawl_config), flush=True)
        print(download(place, DownloadConfig()), flush=True)
        declares = declared(MODELS[model]())
        own_set = "default" if declares.spec == "mel128" else declares.spec
        print(transform(place, TransformConfig(set=own_set, specs=(declares.spec,))), flush=True)
        if declares.target:
            print(factorize(place, FactorizeConfig()), flush=True)
        print(
            f"train: for at most {max_seconds:g} s; `python jobs/train.py {model}` trains in full", flush=True
        )
        training = TrainConfig(set=own_set, max_seconds=max_seconds)
        trained = train(place, model, MODELS[model](), training)
        print(trained, flush=True)
        print(embed(place, EmbedConfig(run=trained.name)), flush=True)
        indexed = index(place, IndexConfig(run=trained.name))
        print(indexed, flush=True)
        print(evaluate(place, EvaluateConfig(runs=(trained.name,))), flush=True)
        print(examples(Index(place, indexed.manifest)), flush=True)
        with served(place, replace(serve_config, run=trained.name)) as address:
            first = httpx.get(f"{address}/v1/tracks?limit=1").json()["tracks"][0]["track_id"]
            question = f"{address}/v1/tracks/{first}/similar?k=3"
            print(f"\n$ curl '{question}'\n{httpx.get(question).text}\n")
            if serve:
                wait_for_end(address)


if __name__ == "__main__":
    run(main, __doc__)
