"""Encoded audio as decoders in C read it: nothing is printed, and FFmpeg opens nothing but the file."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer

    Buffer = bytearray | memoryview


class AudioFile:
    """A file whose methods raise nothing: PyAV and soundfile print what a callback raises, and go on.

    A position that does not exist, such as a damaged header asks for, is answered by -1. After an error of
    the storage the file seems to end, and `check` raises the error.
    """

    def __init__(self, file: io.BytesIO | io.FileIO | io.BufferedReader) -> None:
        self._file = file
        self._error: OSError | None = None
        self.name = str(getattr(file, "name", ""))  # by whose suffix FFmpeg decides between similar formats

    def check(self) -> None:
        """Raise the first error of the storage, if there was one."""
        if self._error:
            raise self._error

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size) or b""
        except OSError as error:
            self._error = self._error or error
            return b""

    def readinto(self, buffer: Buffer) -> int:
        try:
            return self._file.readinto(buffer) or 0
        except OSError as error:
            self._error = self._error or error
            return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def tell(self) -> int:
        return self._file.tell()

    @property
    def descriptor(self) -> int | None:
        """A decoder may read a file on disk by it; None for bytes in memory."""
        return self._file.fileno() if isinstance(self._file, io.FileIO) else None


def open_container(file: AudioFile, **options: str) -> InputContainer:
    """The container that FFmpeg finds in a file, to be closed; raises whatever PyAV raises.

    FFmpeg also probes playlists and session descriptions: the whitelist keeps it from opening the addresses
    and files that they refer to. `options` are those of FFmpeg's demuxers.
    """
    import av  # too slow to load for a job's --help

    whitelist = {"protocol_whitelist": "none"}
    return av.open(file, "r", metadata_errors="ignore", options=whitelist | options)
