"""Answer "what sounds like this?" over HTTP from a run's newest index, until Ctrl-C."""

from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY
from songray.service.app import ServeConfig, serve_forever


def main(config: ServeConfig = ServeConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    serve_forever(open_library(library), config)


if __name__ == "__main__":
    run(main, __doc__)
