"""Build the index of a run anew, without the tracks that were deleted from it."""

from dataclasses import replace

from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY
from songray.search.build import IndexConfig, index


def main(config: IndexConfig = IndexConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(index(open_library(library), replace(config, compact=True)))


if __name__ == "__main__":
    run(main, __doc__)
