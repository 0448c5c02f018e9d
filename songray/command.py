"""The command `songray` and the scripts in jobs/: flags, and errors in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from songray.errors import songray_error

USAGE = """usage: songray JOB [options]

Music recommended by how it sounds. The jobs, in the order in which they run:

{jobs}

`songray JOB --help` describes the options of a job."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `songray`, and `python -m songray`."""
    from songray.jobs import JOBS  # the options of all jobs; an error in the command line needs them too

    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in JOBS:
        run(name, rest)
    elif name in ("-h", "--help"):
        lines = (f"  {job:<11} {JOBS[job].description.splitlines()[0]}" for job in JOBS)
        with _errors_as_sentences():
            print(USAGE.format(jobs="\n".join(lines)), flush=True)
    else:
        print(f"error: there is no job {name!r}: choose from {', '.join(JOBS)}", file=sys.stderr)
        sys.exit(2)


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Parse the flags of a job, from sys.argv by default, and run it."""
    import tyro

    from songray.jobs import JOBS

    job = JOBS[name]
    description, program = job.description, f"songray {name}"
    flat = (tyro.conf.OmitArgPrefixes,)
    with _errors_as_sentences():
        if callable(job.main):
            tyro.cli(job.main, prog=program, description=description, args=arguments, config=flat)
        else:
            tyro.extras.subcommand_cli_from_dict(
                job.main, prog=program, description=description, args=arguments, config=flat
            )


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """Within, a SongrayError is printed as a sentence, with exit status 1; any other error keeps its
    traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whatever reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (reason := songray_error(error)) is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)
