"""Fetch the audio of the tracks that have none yet."""

from songray.audio.download import DownloadConfig, download
from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY


def main(config: DownloadConfig = DownloadConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(download(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
