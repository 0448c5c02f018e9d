"""Have tracks tried anew whose failures counted as final."""

from songray.amend import ReviseConfig, revise
from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY


def main(config: ReviseConfig = ReviseConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(revise(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
