"""Turn spectrograms into one vector a track by a trained run, for the tracks that have none yet."""

from songray.command import LibraryFlag, open_library, run
from songray.learning.embed import EmbedConfig, embed
from songray.library import DEFAULT_LIBRARY


def main(config: EmbedConfig = EmbedConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(embed(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
