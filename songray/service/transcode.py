"""Files that browsers do not play, such as AIFF, WMA and APE, as MP3."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

from songray.media import AudioFile, open_container

AT_ONCE = 2  # files that a process transcodes at a time, in threads of their own
KEPT_FILES = 16  # that were transcoded, of which ranges are requested
MAX_SECONDS = 1200.0  # of a file; the rest is cut off
RATE, BITS_A_SECOND = 44_100, 160_000

Name = tuple[str, int]  # path, and the time of its last change in nanoseconds


class Transcoder:
    """Transcodes whole files, each once, and keeps the newest until the process ends."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="songray-audio-")
        self._files: OrderedDict[Name, asyncio.Task[Path]] = OrderedDict()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def file(self, path: str) -> Path:
        """The MP3 of a file. Raises OSError where it cannot be read, and what PyAV raises of its content."""
        name = (path, os.stat(path).st_mtime_ns)
        if name not in self._files:
            self._files[name] = asyncio.create_task(self._transcode(path))
        self._files.move_to_end(name)
        try:
            transcoded = await asyncio.shield(self._files[name])
        except Exception:
            self._files.pop(name, None)
            raise
        self._forget()
        return transcoded

    async def _transcode(self, path: str) -> Path:
        descriptor, name = tempfile.mkstemp(".mp3", dir=self._folder.name)
        os.close(descriptor)
        async with self._slots:
            try:
                await asyncio.to_thread(transcode, path, Path(name))
            except Exception:
                os.unlink(name)
                raise
        return Path(name)

    def _forget(self) -> None:
        """Delete the files that were requested longest ago; one that is being sent stays open."""
        while len(self._files) > KEPT_FILES and next(iter(self._files.values())).done():
            _, task = self._files.popitem(last=False)
            if not task.exception():
                task.result().unlink(missing_ok=True)


def transcode(source: str, destination: Path) -> None:
    """Write the sound of a file as MP3 in stereo. Raises OSError, and what PyAV raises."""
    import av
    from av.audio.resampler import AudioResampler

    with (
        Path(source).open("rb", buffering=0) as file,
        open_container(AudioFile(file)) as container,
        av.open(str(destination), "w", format="mp3") as output,
    ):
        encoder = output.add_stream("mp3", rate=RATE, layout="stereo", bit_rate=BITS_A_SECOND)
        resampler = AudioResampler("s16p", "stereo", RATE)
        for frame in container.decode(container.streams.audio[0]):
            if frame.time is not None and frame.time > MAX_SECONDS:
                break
            for resampled in resampler.resample(frame):
                output.mux(encoder.encode(resampled))
        for resampled in resampler.resample(None):
            output.mux(encoder.encode(resampled))
        output.mux(encoder.encode(None))
