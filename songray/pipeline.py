"""Runs all stages in order on one machine: serves a sample of the tracks first, and then all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import tenacity

from songray.audio.download import DownloadConfig, download
from songray.audio.sets import specs_of
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.base import Source
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.cluster import connect
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.learning import runs
from songray.learning.adapt import AdaptationConfig, adapt
from songray.learning.embed import EmbedConfig, embed
from songray.learning.factorize import FactorizeConfig, factorize
from songray.learning.fuse import TRACKS_PER_NUMBER, FusionConfig, fuse
from songray.learning.models import MODELS, LearningConfig
from songray.learning.runs import ADAPTATION, FUSION, Run
from songray.learning.train import TrainConfig, train
from songray.library import Library, Row
from songray.search.build import IndexConfig, index
from songray.search.project import ProjectConfig, project
from songray.search.version import Version, newest_version
from songray.service.options import IngressConfig, ServeConfig

# The members of the fusion and their weights, which tests/benchmarks/bench_fusion.py finds.
MEMBERS = {"musicnn-msd": 1.0, "musicnn-mtt": 0.5, "mfcc": 0.25, "random": 0.5}
# A model that learns from a run, or that a folder contains, has an option without a default.
CHOICES = (FUSION, *(name for name in MODELS if name not in ("distilled", "transformers")))
FIRST_TRACKS = 100  # of a library without an index, which are served first
GROWTH = 10  # factor between the numbers of tracks of the versions that follow
FOLLOWED_SECONDS = 60.0  # after which a new version that the service does not serve is not waited for
EXAMPLES = 3  # tracks whose neighbours are printed
NEIGHBOURS = 5


@dataclass(frozen=True)
class PipelineConfig:
    model: Literal[CHOICES] = FUSION  # type: ignore[valid-type]
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
    """Crawl; then download, transform, train, embed, index and serve a growing sample, and at last all
    tracks; evaluate, and print examples."""
    from songray.catalogue.sources.synthetic import server
    from songray.service.api_keys import keys_for
    from songray.service.haproxy import haproxy_environment

    keys_for(config.host, config.open)  # before hours of work
    with ExitStack() as contexts:
        connect(contexts.enter_context(haproxy_environment()))
        if isinstance(source, SyntheticSource):
            contexts.enter_context(server.served(source))
        service = Service(library, config, contexts)
        _print(crawl(library, source, crawl_config))
        indexed = service.serve_existing()
        for sample in _samples(library, config, indexed):
            run = _embedded(library, config, sample)
            version = service.update(run)
        if config.model == FUSION and (adapted := _adapted(library, run)):
            version = service.update(adapted)
        compared = dict.fromkeys((version.run, run.name, *run.members))
        _print(evaluate(library, EvaluateConfig(runs=tuple(compared))))
        _print(asyncio.run(examples(library, version)))
        service.wait()


@dataclass
class Service:
    """What the pipeline serves, from its first index until the end of the context."""

    library: Library
    config: PipelineConfig
    contexts: ExitStack
    started: float = field(default_factory=time.monotonic)
    address: str = ""
    run: str = ""

    def serve_existing(self) -> int:
        """Serve the index with the most tracks that a run of the model has, and return their number."""
        names = (name for name in runs.finished(self.library) if self._is_eligible(name))
        existing = [version for name in names if (version := newest_version(self.library, name))]
        if not existing:
            return 0
        version = max(existing, key=lambda version: version.tracks)
        if self.config.serve:
            self.serve(version)
        return version.tracks

    def _is_eligible(self, name: str) -> bool:
        run = runs.find(self.library, name)
        models = (FUSION, ADAPTATION) if self.config.model == FUSION else (self.config.model,)
        return run is not None and run.model in models

    def update(self, run: Run) -> Version:
        """Map and index the vectors of a run, and serve them."""
        _print(project(self.library, ProjectConfig(run=run.name)))
        summary = index(self.library, IndexConfig(run=run.name))
        _print(summary)
        self.serve(summary.version)
        return summary.version

    def serve(self, version: Version) -> None:
        """Serve the run of a version; a service follows the versions of its run by itself."""
        from songray.service.app import deploy, served

        # Ray Data plans with all logical CPUs: its stages would wait for those of a replica for ever.
        ingress = IngressConfig(run=version.run, replica_cpus=0)
        options = ServeConfig(self.config.host, self.config.port, open=self.config.open, ingress=ingress)
        if not self.address:
            self.address = self.contexts.enter_context(served(self.library, options))
        elif version.run != self.run:
            deploy(self.library, options)
        self.run = version.run
        ready, seconds = _ready(self.address, version), time.monotonic() - self.started
        _print(f"serve: after {seconds:.0f} s {ready['tracks']} tracks at {self.address}, run {ready['run']}")

    def wait(self) -> None:
        """Print an example of a query, and serve until Ctrl-C where the options say so."""
        import httpx

        from songray.service.app import wait_for_end

        first = httpx.get(f"{self.address}/v1/tracks?limit=1").json()["tracks"][0]["track_id"]
        query = f"{self.address}/v1/tracks/{first}/similar?k=3"
        _print(f"\n$ curl '{query}'\n{httpx.get(query).text}\n")
        if self.config.serve:
            wait_for_end(self.address)


def _ready(address: str, version: Version) -> Row:
    """The answer of /readyz once it names a version, or its last one where that takes too long."""
    import httpx

    def ask() -> Row:
        answer: Row = httpx.get(f"{address}/readyz").json()
        return answer

    expected = (version.run, version.version)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda ready: (ready["run"], ready["version"]) != expected),
        wait=tenacity.wait_fixed(0.2),
        stop=tenacity.stop_after_delay(FOLLOWED_SECONDS),
    )
    try:
        ready: Row = retrying(ask)
    except tenacity.RetryError as error:
        ready = error.last_attempt.result()
    return ready


def _samples(library: Library, config: PipelineConfig, indexed: int) -> Iterator[int | None]:
    """The numbers of tracks of the versions that are built and served, each at most half of all, and larger
    than the one before it; None: all tracks. A model that is trained is trained on all."""
    tracks = library.table("tracks").newest(["track_key"]).rows.num_rows
    size = FIRST_TRACKS
    while config.serve and config.model == FUSION and 2 * size < tracks:
        if size > indexed:
            yield size
        size *= GROWTH
    yield None


def _embedded(library: Library, config: PipelineConfig, sample: int | None) -> Run:
    """The run whose vectors are indexed; all tracks of the sample have them."""
    _print(download(library, DownloadConfig(sample=sample)))
    models = tuple(MEMBERS) if config.model == FUSION else (config.model,)
    sets = _transformed(library, models)
    members = {model: _learn(library, model, sets[model], config.max_seconds) for model in models}
    if config.model != FUSION:
        return members[config.model]
    weights = tuple(f"{members[model].name}:{weight:g}" for model, weight in MEMBERS.items())
    run = fuse(library, FusionConfig(weights, _dimension(library, members.values())))
    _print(run)
    _print(embed(library, EmbedConfig(run=run.name)))
    return run


def _adapted(library: Library, base: Run) -> Run | None:
    """The run that adapts another to the artists of the library; None where held-out artists show no gain."""
    adaptation = adapt(library, AdaptationConfig(base=base.name))
    _print(adaptation)
    if adaptation.run:
        _print(embed(library, EmbedConfig(run=adaptation.run.name)))
    return adaptation.run


def _dimension(library: Library, members: Iterable[Run]) -> int:
    """The length of the joined vectors: they are not reduced, 0, until enough tracks have them."""
    tracks = min(library.table("embeddings", run.name).finished_keys().size for run in members)
    return FusionConfig.dimension if tracks >= TRACKS_PER_NUMBER * FusionConfig.dimension else 0


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
