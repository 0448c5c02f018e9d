"""Runs all stages in order on one machine, and serves the result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, specs_of, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.base import Source
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.cluster import connect
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.learning.embed import EmbedConfig, embed
from songray.learning.factorize import FactorizeConfig, factorize
from songray.learning.fuse import FusionConfig, fuse
from songray.learning.models import MODELS, LearningConfig
from songray.learning.runs import FUSION, Run
from songray.learning.train import TrainConfig, train
from songray.library import Library, Row
from songray.search.build import IndexConfig, index
from songray.search.version import Version
from songray.service.options import IngressConfig, ServeConfig

# The members of the fusion and their weights, which tests/benchmarks/bench_fusion.py finds.
MEMBERS = {"musicnn-msd": 1.0, "musicnn-mtt": 0.5, "mfcc": 0.25, "random": 0.5}
EXAMPLES = 3  # tracks whose neighbours are printed
NEIGHBOURS = 5


@dataclass(frozen=True)
class PipelineConfig:
    model: Literal[(FUSION, *MODELS)] = FUSION  # type: ignore[valid-type]
    """Model that turns sound into vectors; fusion joins two pretrained ones with two baselines."""
    max_seconds: float = 600.0
    """Time limit of the training, in seconds, of models that are trained; `songray train` trains in full."""
    serve: bool = True
    """Serve over HTTP until Ctrl-C; without, stop after printing some recommendations."""
    host: str = ServeConfig.host
    """Address to listen on."""
    port: int = ServeConfig.port
    """Port to listen on."""
    open: bool = ServeConfig.open
    """Where SONGRAY_KEYS lists no keys, answer requests of other machines without one; otherwise the service
    does not start where they can reach it."""


def pipeline(library: Library, source: Source, crawl_config: CrawlConfig, config: PipelineConfig) -> None:
    """Crawl, download, transform, train, embed, index, evaluate; then print examples and serve."""
    from songray.catalogue.sources.synthetic import server
    from songray.service.api_keys import keys_for
    from songray.service.haproxy import haproxy_environment

    keys_for(config.host, config.open)  # before hours of work
    with ExitStack() as contexts:
        connect(contexts.enter_context(haproxy_environment()))
        if isinstance(source, SyntheticSource):
            contexts.enter_context(server.served(source))
        _print(crawl(library, source, crawl_config))
        _print(download(library, DownloadConfig()))
        run = _embedded(library, config)
        indexed = index(library, IndexConfig(run=run.name))
        _print(indexed)
        _print(evaluate(library, EvaluateConfig(runs=(run.name, *run.members))))
        _print(asyncio.run(examples(library, indexed.version)))
        _serve(library, run.name, config)


def _embedded(library: Library, config: PipelineConfig) -> Run:
    """The run whose vectors are indexed; all tracks have them."""
    models = tuple(MEMBERS) if config.model == FUSION else (config.model,)
    sets = _transformed(library, models)
    members = {model: _learn(library, model, sets[model], config.max_seconds) for model in models}
    if config.model != FUSION:
        return members[config.model]
    weights = tuple(f"{members[model].name}:{weight:g}" for model, weight in MEMBERS.items())
    run = fuse(library, FusionConfig(weights))
    _print(run)
    _print(embed(library, EmbedConfig(run=run.name)))
    return run


def _transformed(library: Library, models: Sequence[str]) -> dict[str, str]:
    """Compute the spectrograms that the models take; returns the set of each. Where the default set, made by
    an earlier version, lacks a spec, a second set has it."""
    from songray.learning.train import declared

    in_default = specs_of(library, "default")
    specs = {model: declared(MODELS[model]()).spec for model in models}
    sets = {model: "default" if spec in in_default else spec for model, spec in specs.items()}
    for name in dict.fromkeys(sets.values()):
        _print(transform(library, TransformConfig(set=name, specs=() if name == "default" else (name,))))
    return sets


def _learn(library: Library, name: str, set_name: str, max_seconds: float) -> Run:
    """Train a model, and compute the vectors of all tracks."""
    from songray.learning.train import declared

    options, training = MODELS[name](), TrainConfig(set=set_name)
    if declared(options).target:
        _print(factorize(library, FactorizeConfig()))
    if isinstance(options, LearningConfig):
        _print(f"train: for at most {max_seconds:g} s; `songray train {name}` trains in full")
        training = replace(training, max_seconds=max_seconds)
    run = train(library, name, options, training)
    _print(run)
    _print(embed(library, EmbedConfig(run=run.name)))
    return run


def _serve(library: Library, run: str, config: PipelineConfig) -> None:
    import httpx

    from songray.service.app import served, wait_for_end

    options = ServeConfig(config.host, config.port, open=config.open, ingress=IngressConfig(run=run))
    with served(library, options) as address:
        first = httpx.get(f"{address}/v1/tracks?limit=1").json()["tracks"][0]["track_id"]
        query = f"{address}/v1/tracks/{first}/similar?k=3"
        _print(f"\n$ curl '{query}'\n{httpx.get(query).text}\n")
        if config.serve:
            wait_for_end(address)


async def examples(library: Library, version: Version) -> str:
    """The neighbours of a few tracks, and whether they share a genre, as text."""
    from songray.search.index import Index
    from songray.search.ranking import RankingOptions, similar

    opened = Index.open(library, version)
    lines = []
    for track in await opened.rows(await opened.search("", EXAMPLES)):
        lines.append(f"\n{_line(track)} is similar to")
        _, matches = await similar(opened, track["track_id"], RankingOptions(k=NEIGHBOURS))
        for match in matches:
            compared = _compare_genres(track, match.track)
            lines.append(f"  {match.similarity:.3f}  {_line(match.track)}{compared}")
    return "\n".join(lines)


def _compare_genres(track: Row, other: Row) -> str:
    if not track["genres"]:
        return ""
    return "  (same genre)" if set(track["genres"]) & set(other["genres"]) else "  (another genre)"


def _line(track: Row) -> str:
    artists = ", ".join(track["artist_names"]) or "unknown artist"
    genres = f" [{', '.join(track['genres'])}]" if track["genres"] else ""
    return f"{track['title']} – {artists}{genres}"


def _print(text: object) -> None:
    print(text, flush=True)  # a pipe shows each stage as it ends
