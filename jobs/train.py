"""Train a model on the spectrograms; a training that was cut off goes on from its last epoch."""

from collections.abc import Callable

from songray.command import LibraryFlag, described, open_library, run
from songray.learning.models import MODELS
from songray.learning.train import TrainConfig, train
from songray.library import DEFAULT_LIBRARY


def command(name: str) -> Callable[..., None]:
    def main(
        model: MODELS[name] = MODELS[name](),
        config: TrainConfig = TrainConfig(),
        library: LibraryFlag = DEFAULT_LIBRARY,
    ) -> None:
        print(train(open_library(library), name, model, config))

    return described(main, MODELS[name])


if __name__ == "__main__":
    run({name: command(name) for name in MODELS}, __doc__)
