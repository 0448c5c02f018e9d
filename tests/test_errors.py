"""The tree of errors, and the one place that finds an error of a worker in what Ray wraps it with."""

from __future__ import annotations

import pickle

import pytest
import ray
import ray.data

from songray.errors import AudioError, FetchError, InvalidOption, MissingInput, SongrayError, songray_error


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(FetchError("http_503", "x answered 503", 503, True, 2.0)))
    assert (error.kind, str(error), error.status, error.retryable) == (
        "http_503",
        "x answered 503",
        503,
        True,
    )
    audio = pickle.loads(pickle.dumps(AudioError("empty", "no bytes")))
    assert (audio.kind, str(audio)) == ("empty", "no bytes")


def test_a_defect_is_no_songray_error() -> None:
    try:
        raise KeyError("x") from ValueError("y")
    except KeyError as error:
        assert songray_error(error) is None
    assert isinstance(songray_error(InvalidOption("x")), ValueError)


def test_an_error_of_a_worker_is_unwrapped(cluster: None) -> None:
    def fail(row: dict[str, int]) -> dict[str, int]:
        raise MissingInput("tracks is empty: run `songray crawl` first")

    with pytest.raises(ray.exceptions.RayTaskError) as task:
        ray.get(ray.remote(fail).remote({}))
    with pytest.raises(Exception) as data:
        ray.data.range(1).map(fail).take_all()
    for error in (task.value, data.value):
        unwrapped = songray_error(error)
        assert type(unwrapped) is MissingInput and isinstance(unwrapped, SongrayError)
        assert str(unwrapped) == "tracks is empty: run `songray crawl` first"
