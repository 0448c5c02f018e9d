"""Compare runs: do the nearest neighbours share recording, artist, genre?"""

from songray.command import LibraryFlag, open_library, run
from songray.evaluation.evaluate import EvaluateConfig, evaluate
from songray.library import DEFAULT_LIBRARY


def main(config: EvaluateConfig = EvaluateConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(evaluate(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
