"""What a Python task prints: logged, the last of it kept for error messages, and never in anybody's way."""

from __future__ import annotations

import os
import threading
import time

import structlog

logger = structlog.get_logger()
LINES_PER_SECOND_MAX = 20
LINE_BYTES_MAX = 400
_READ_BYTES = 1 << 14


class OutputLines:
    """The reading end of the child's standard output and error, drained by a thread of its own."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._source, self.descriptor = os.pipe()
        self._last = b""
        self._second, self._logged = 0.0, 0
        self._thread = threading.Thread(target=self._drain, name=f"output-{call}"[:60], daemon=True)

    def read(self) -> None:
        """Begin; the child has its own copy of `descriptor` by now."""
        os.close(self.descriptor)
        self._thread.start()

    def tail(self) -> str:
        """Its last line, for a message about its death."""
        self._thread.join(0.2)
        lines = self._last.decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]})" if lines else ""

    def _drain(self) -> None:
        try:
            while chunk := os.read(self._source, _READ_BYTES):
                self._last = (self._last + chunk)[-LINE_BYTES_MAX:]
                for line in chunk.splitlines():
                    self._log(line)
        finally:
            os.close(self._source)

    def _log(self, line: bytes) -> None:
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._logged = now, 0
        self._logged += 1
        # Beyond that it is dropped: a task that prints without end must not fill the worker's log.
        if self._logged <= LINES_PER_SECOND_MAX and line.strip():
            logger.info("a Python task printed", call=self._call, line=line[:LINE_BYTES_MAX].decode(errors="replace"))
