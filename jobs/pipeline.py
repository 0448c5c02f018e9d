"""Run all stages in order on one machine: from a catalogue to recommendations over HTTP.

    python jobs/pipeline.py folder --folder ~/Music

Started again, it does only what is new, and serves.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import httpx

from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.base import Source
from songray.catalogue.sources.registry import SOURCES
from songray.catalogue.sources.synthetic import source as synthetic
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.command import LibraryFlag, described, open_library, run
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.learning.embed import EmbedConfig, embed
from songray.learning.factorize import FactorizeConfig, factorize
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, declared, train
from songray.library import DEFAULT_LIBRARY, Library
from songray.search.build import IndexConfig, index
from songray.search.ranking import examples
from songray.search.version import Index
from songray.service.app import IngressConfig, ServeConfig, served, wait_for_end


@dataclass(frozen=True)
class PipelineConfig:
    model: Literal[tuple(MODELS)] = "contrastive"
    """What turns sound into vectors."""
    max_seconds: float = 600.0
    """Train for at most so long; jobs/train.py trains in full."""
    serve: bool = True
    """Stay and answer over HTTP; without, stop after printing some recommendations."""
    host: str = ServeConfig.host
    """Address to listen on."""
    port: int = ServeConfig.port
    """Port to listen on."""


def command(name: str) -> Callable[..., None]:
    def main(
        source: SOURCES[name] = SOURCES[name](),
        crawl_config: CrawlConfig = CrawlConfig(),
        config: PipelineConfig = PipelineConfig(),
        library: LibraryFlag = DEFAULT_LIBRARY,
    ) -> None:
        pipeline(open_library(library), source, crawl_config, config)

    return described(main, SOURCES[name])


def pipeline(place: Library, source: Source, crawl_config: CrawlConfig, config: PipelineConfig) -> None:
    model, max_seconds = config.model, config.max_seconds
    with synthetic.served(source) if isinstance(source, SyntheticSource) else nullcontext():
        print(crawl(place, source, crawl_config), flush=True)
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
        print(asyncio.run(some(Index.open(place, indexed.manifest))), flush=True)
        serving = ServeConfig(config.host, config.port, ingress=IngressConfig(run=trained.name))
        with served(place, serving) as address:
            first = httpx.get(f"{address}/v1/tracks?limit=1").json()["tracks"][0]["track_id"]
            question = f"{address}/v1/tracks/{first}/similar?k=3"
            print(f"\n$ curl '{question}'\n{httpx.get(question).text}\n")
            if config.serve:
                wait_for_end(address)


async def some(opened: Index) -> str:
    return await examples(opened, await opened.rows(await opened.search("", 3)))


if __name__ == "__main__":
    run({name: command(name) for name in SOURCES}, __doc__)
