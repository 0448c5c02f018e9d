"""Serve the audio of the synthetic catalogue on 127.0.0.1, until Ctrl-C."""

from songray.catalogue.sources.synthetic.source import SyntheticSource, serve_forever
from songray.command import run


def main(config: SyntheticSource = SyntheticSource()) -> None:
    serve_forever(config)


if __name__ == "__main__":
    run(main, __doc__)
