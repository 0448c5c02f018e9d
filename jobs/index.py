"""Build a searchable index of a run's vectors, as a new version."""

from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY
from songray.search.build import IndexConfig, index


def main(config: IndexConfig = IndexConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(index(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
