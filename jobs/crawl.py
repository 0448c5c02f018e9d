"""Read a catalogue into tracks, artists and playlists; what has not changed is not read again."""

from collections.abc import Callable

from songray.catalogue.crawl import CrawlConfig, crawl
from songray.catalogue.sources.registry import SOURCES
from songray.command import LibraryFlag, described, open_library, run
from songray.library import DEFAULT_LIBRARY


def command(name: str) -> Callable[..., None]:
    def main(
        source: SOURCES[name] = SOURCES[name](),
        config: CrawlConfig = CrawlConfig(),
        library: LibraryFlag = DEFAULT_LIBRARY,
    ) -> None:
        print(crawl(open_library(library), source, config))

    return described(main, SOURCES[name])


if __name__ == "__main__":
    run({name: command(name) for name in SOURCES}, __doc__)
