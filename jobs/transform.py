"""Turn audio into spectrograms, for the tracks that have none yet."""

from songray.audio.transform import TransformConfig, transform
from songray.command import LibraryFlag, open_library, run
from songray.library import DEFAULT_LIBRARY


def main(config: TransformConfig = TransformConfig(), library: LibraryFlag = DEFAULT_LIBRARY) -> None:
    print(transform(open_library(library), config))


if __name__ == "__main__":
    run(main, __doc__)
