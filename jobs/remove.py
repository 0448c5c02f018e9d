"""Take tracks out of all tables, for good: later crawls leave them out too."""

from songray.amend import RemoveConfig, remove
from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY


def main(config: RemoveConfig = RemoveConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(remove(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
