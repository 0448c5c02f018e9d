"""All jobs: for each its description, and the function that its flags are derived from.

Modules that define options import neither Ray nor torch, so that `--help` answers at once. A job connects to
Ray where it has something to do: see songray/cluster.py.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from songray.amend import RemoveConfig, ReviseConfig, remove, revise
from songray.audio.download import DownloadConfig, download
from songray.audio.transform import TransformConfig, transform
from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.registry import SOURCES
from songray.catalogue.sources.synthetic.source import SyntheticSource
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.learning.adapt import AdaptationConfig, adapt
from songray.learning.embed import EmbedConfig, embed
from songray.learning.factorize import FactorizeConfig, factorize
from songray.learning.fuse import FusionConfig, fuse
from songray.learning.models import MODELS
from songray.learning.runs import ADAPTATION, FUSION
from songray.learning.train import TrainConfig, train
from songray.library import DEFAULT_LIBRARY, Library
from songray.merge import MergeConfig, merge
from songray.pipeline import PipelineConfig, pipeline
from songray.search.build import IndexConfig, index
from songray.search.project import ProjectConfig, project
from songray.service.options import ServeConfig

Main = Callable[..., None]
LibraryFlag = Annotated[
    str, tyro.conf.arg(name="library", help="Folder or URI (s3://…, gs://…) of the library.")
]


@dataclass(frozen=True)
class WritableLibrary:
    library: LibraryFlag = DEFAULT_LIBRARY
    take_over: bool = False
    """Write although another process holds the output's lease; that process then stops with an error."""

    def open(self) -> Library:
        return replace(Library.open(self.library), take_over=self.take_over)


DEFAULT = WritableLibrary()


@dataclass(frozen=True)
class Job:
    description: str  # its first line stands in `songray --help`
    main: Main | dict[str, Main]  # a dict holds subcommands


# Annotations that are looked up in a registry make one subcommand of each of its entries; mypy cannot see
# them.
def _crawl(name: str) -> Main:
    def main(
        source: SOURCES[name] = SOURCES[name](),  # type: ignore[valid-type]
        config: CrawlConfig = CrawlConfig(),
        library: WritableLibrary = DEFAULT,
    ) -> None:
        print(crawl(library.open(), source, config))

    return _described(main, SOURCES[name])


def _download(config: DownloadConfig = DownloadConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(download(library.open(), config))


def _transform(config: TransformConfig = TransformConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(transform(library.open(), config))


def _factorize(config: FactorizeConfig = FactorizeConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(factorize(library.open(), config))


def _train(name: str) -> Main:
    def main(
        model: MODELS[name] = MODELS[name](),  # type: ignore[valid-type]
        config: TrainConfig = TrainConfig(),
        library: WritableLibrary = DEFAULT,
    ) -> None:
        print(train(library.open(), name, model, config))

    return _described(main, MODELS[name])


def _fuse(config: FusionConfig = FusionConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(fuse(library.open(), config))


def _adapt(config: AdaptationConfig = AdaptationConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(adapt(library.open(), config))


def _embed(config: EmbedConfig = EmbedConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(embed(library.open(), config))


def _project(config: ProjectConfig = ProjectConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(project(library.open(), config))


def _index(config: IndexConfig = IndexConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(index(library.open(), config))


def _compact(config: IndexConfig = IndexConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(index(library.open(), replace(config, compact=True)))


def _evaluate(config: EvaluateConfig = EvaluateConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    evaluation = evaluate(Library.open(library), config)
    print(evaluation)
    if config.output:
        print(f"\nwritten to {config.output}: {', '.join(sorted(os.listdir(config.output)))}")
    if config.fail_below is not None:
        evaluation.check(config.metric, config.fail_below)


def _serve(config: ServeConfig = ServeConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    from songray.cluster import connect
    from songray.service.app import serve_forever
    from songray.service.haproxy import haproxy_environment

    with haproxy_environment() as environment:
        connect(environment)
        serve_forever(Library.open(library), config)


def _pipeline(name: str) -> Main:
    def main(
        source: SOURCES[name] = SOURCES[name](),  # type: ignore[valid-type]
        crawl_config: CrawlConfig = CrawlConfig(),
        config: PipelineConfig = PipelineConfig(),
        library: WritableLibrary = DEFAULT,
    ) -> None:
        pipeline(library.open(), source, crawl_config, config)

    return _described(main, SOURCES[name])


def _remove(config: RemoveConfig = RemoveConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(remove(library.open(), config))


def _revise(config: ReviseConfig = ReviseConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(revise(library.open(), config))


def _merge(config: MergeConfig = MergeConfig(), library: WritableLibrary = DEFAULT) -> None:
    print(merge(library.open(), config))


def _synthesize(config: SyntheticSource = SyntheticSource()) -> None:
    from songray.catalogue.sources.synthetic.server import serve_forever

    serve_forever(config)


def _described(main: Main, options: type) -> Main:
    """A subcommand whose line in --help is the first one of its options' docstring, or of their module's."""
    doc = options.__doc__ or ""
    if doc.startswith(f"{options.__name__}("):  # the signature, which a dataclass without a docstring gets
        doc = sys.modules[options.__module__].__doc__ or ""
    main.__doc__ = doc.splitlines()[0]
    return main


JOBS = {
    "pipeline": Job(
        "Run all stages in order on one machine: from a catalogue to recommendations over HTTP.\n\n"
        "Started again, it processes only what is new, and serves.",
        {name: _pipeline(name) for name in SOURCES},
    ),
    "crawl": Job(
        "Read a catalogue into tracks, artists and playlists; what has not changed is not read again.",
        {name: _crawl(name) for name in SOURCES},
    ),
    "download": Job("Download the audio of the tracks that have no preview yet.", _download),
    "transform": Job("Compute the spectrograms of the previews that have none yet.", _transform),
    "factorize": Job("Factorise playlists into collaborative vectors of tracks.", _factorize),
    "train": Job(
        "Train a model on spectrograms; a training that was interrupted continues after its last epoch.",
        {name: _train(name) for name in MODELS}
        | {FUSION: _described(_fuse, FusionConfig), ADAPTATION: _described(_adapt, AdaptationConfig)},
    ),
    "embed": Job("Compute one vector a track by a trained run, for the tracks that have none yet.", _embed),
    "project": Job("Compute a map of a run's embeddings: the position of each track.", _project),
    "index": Job("Update the search index of a run, as a new version.", _index),
    "compact": Job("Build the search index of a run anew, without the tracks that were deleted.", _compact),
    "serve": Job("Answer queries over HTTP from the newest index of a run, until Ctrl-C.", _serve),
    "evaluate": Job(
        "Measure how often neighbours share recording, album, artist or genre; compare runs.", _evaluate
    ),
    "remove": Job("Remove tracks from all tables and indexes; later crawls skip them.", _remove),
    "revise": Job("Have tracks processed again whose failures counted as permanent.", _revise),
    "merge": Job("Merge the small files of tables, which many small runs leave behind.", _merge),
    "synthesize": Job("Serve the audio of the synthetic catalogue on 127.0.0.1, until Ctrl-C.", _synthesize),
}
