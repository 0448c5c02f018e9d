"""The command line: help without heavy libraries, one sentence for an error that a person can act on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from songray import jobs
from songray.command import main, run
from songray.errors import MissingInput
from songray.jobs import JOBS, Job


def songray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "songray", *arguments], capture_output=True, text=True)


def test_help_lists_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    output = capsys.readouterr().out
    for name, job in JOBS.items():
        assert f"  {name} " in output and job.description.splitlines()[0] in output


@pytest.mark.parametrize("name", JOBS)
def test_every_job_describes_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, ["--help"])
    assert ended.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    assert JOBS[name].description.split()[0] in output


def test_every_option_has_a_sentence_as_its_help() -> None:
    """Each option of a job, and of its subcommands: a capital letter first, a full stop last."""
    lines = [line for path in (ROOT / "songray").rglob("*.py") for line in path.read_text().splitlines()]
    fragments = [line for line in lines if line.strip().startswith(('"""Of ', '"""With ', '"""By '))]
    assert fragments == []


def test_a_reader_that_ends_early_causes_no_traceback() -> None:
    command = f"{sys.executable} -m songray --help | head -1"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "usage: songray JOB [options]\n" and result.stderr == ""


def test_an_unknown_job_names_the_choices() -> None:
    result = songray("trian")
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no job 'trian': choose from pipeline, crawl,")


def test_an_error_to_act_on_is_one_sentence(tmp_path: Path) -> None:
    result = songray("embed", "--library", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == "error: there is no finished run: run `songray train` first\n"


def test_a_script_in_jobs_is_the_job_of_its_name(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/evaluate.py", "--library", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        1,
        "error: no run has embeddings: run `songray embed` first\n",
    )


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("a defect")

    def refused() -> None:
        raise MissingInput("tracks is empty")

    monkeypatch.setitem(jobs.JOBS, "broken", Job("Fail.", broken))
    monkeypatch.setitem(jobs.JOBS, "refused", Job("Refuse.", refused))
    with pytest.raises(ValueError, match="a defect"):
        run("broken", [])
    with pytest.raises(SystemExit):
        run("refused", [])
