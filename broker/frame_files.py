"""Files of bounded size that hold msgpack frames, each behind its length: what recordings are kept in."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from schemas.errors import ConfigurationError

logger = structlog.get_logger()
FILE_BYTES_MAX = 1 << 30
"""A recording ends here; whoever records goes on."""
FRAME_BYTES_MAX = 256 << 20
BUFFER_BYTES = 1 << 18
_LENGTH = struct.Struct("<I")


class FrameFile:
    """Takes frames until it is full or the disk refuses: then it says so once and takes no more. Once open it never raises."""

    def __init__(self, path: Path, *, bytes_max: int = FILE_BYTES_MAX) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        self._path, self._bytes_left = path, bytes_max
        try:
            self._file: BinaryIO | None = path.open("wb", buffering=BUFFER_BYTES)
        except OSError as error:
            raise ConfigurationError(f"cannot record to {path}: {error.strerror}") from error
        self._encode = msgspec.msgpack.Encoder().encode

    @property
    def takes_more(self) -> bool:
        """False once it is full or was closed."""
        return self._file is not None

    def write(self, frame: msgspec.Struct, *, flush: bool) -> None:
        """Add a frame; `flush`: whoever reads along, or a kill, finds all frames up to this one."""
        if self._file is None:
            return
        try:
            value = self._encode(frame)
        except (OverflowError, TypeError, ValueError, RecursionError) as error:
            # What comes from outside may hold what msgpack cannot: nothing fails for a recording.
            self._end("a frame cannot be encoded", error)
            return
        self._bytes_left -= _LENGTH.size + len(value)
        if self._bytes_left < 0 or len(value) > FRAME_BYTES_MAX:
            self._end("it is full")
            return
        try:
            self._file.write(_LENGTH.pack(len(value)))
            self._file.write(value)
            if flush:
                self._file.flush()
        except OSError as error:
            self._end("it cannot be written", error)

    def close(self) -> None:
        """Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                logger.warning("the end of the recording is lost", path=str(self._path), error=str(error))

    def _end(self, reason: str, error: Exception | None = None) -> None:
        logger.warning("the recording ends here", path=str(self._path), reason=reason, error=str(error or ""))
        self.close()


def read_frames(path: Path) -> Iterator[bytes]:
    """Frames as they are asked for; a last one that was cut off is left out. Raises ConfigurationError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
                (size,) = _LENGTH.unpack(head)
                if size > FRAME_BYTES_MAX or len(value := file.read(size)) < size:
                    return
                yield value
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
