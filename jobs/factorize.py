"""Turn playlists into factors of tracks, which a model can learn to hear."""

from songray.command import LibraryFlag, open_library, run
from songray.learning.factorize import FactorizeConfig, factorize
from songray.library import DEFAULT_LIBRARY


def main(config: FactorizeConfig = FactorizeConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(factorize(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
