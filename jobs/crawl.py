"""Read a catalogue into tracks, artists and playlists; what has not changed is not read again."""

from songray.catalog import CrawlConfig, crawl
from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY


def main(config: CrawlConfig = CrawlConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(crawl(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
