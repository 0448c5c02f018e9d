from __future__ import annotations

import asyncio
import os
import signal

import pytest
import ray
from serving import RUN, shared_library

from songray.service.uploads import UploadEncoder


def test_a_decoder_that_dies_is_an_error_of_its_upload_alone(
    cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    encoder = UploadEncoder(shared_library(tmp_path_factory)[0])
    decode = encoder.decode
    encoder.decode = ray.remote(max_retries=0)(lambda audio, config: os.kill(os.getpid(), signal.SIGKILL))
    assert asyncio.run(encoder.embed(b"", RUN)).error == "decoder_died"
    encoder.decode = decode
    assert asyncio.run(encoder.embed(b"", RUN)).error == "empty"
