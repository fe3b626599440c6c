"""The commit watermark of one shard: the offset below which all is finished, and which offsets above it are.

The committed metadata carries the log time from which terminal records must be read again after a restart, and a bitmap of the
offsets above the watermark that are finished, so that a restart does not redo them.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable

import numpy as np

VERSION = "1"
SPAN_MAX = 1 << 18
"""Offsets above the watermark that the bitmap may speak of: working it out must not hold a step up."""
TRIM_BYTES = 1 << 16


class Watermark:
    """Offsets are begun in growing order and finished in any. One byte for each offset above the watermark: a request that stays is cheap."""

    def __init__(self, low: int = 0, above: bytes = b"", since_ms: int = 0) -> None:
        """`low`: all below is finished; `above`: from there on, 1 for each offset that is finished, else 0.

        `since_ms`: terminal records from before it say nothing about what is not finished.
        """
        self.low = low
        self.since_ms = since_ms
        self._base = low
        self._above = bytearray(above)
        """From offset `_base` (at most `low`): 1 where it is finished."""
        if above:
            self._advance()

    def is_finished(self, offset: int) -> bool:
        """True for what was finished before, in this life or an earlier one."""
        at = offset - self._base
        return offset < self.low or (at < len(self._above) and self._above[at] == 1)

    def finish(self, offset: int) -> None:
        """The request at this offset has its outcome in the log. Idempotent."""
        self.finish_all((offset,))

    def finish_all(self, offsets: Iterable[int]) -> None:
        """The same, of many."""
        above = self._above
        for offset in offsets:
            if offset == self.low and not above:
                self.low += 1
            elif offset >= self.low:
                if not above:
                    self._base = self.low
                at = offset - self._base
                if at >= len(above):
                    above.extend(bytes(at + 1 - len(above)))
                above[at] = 1
        if above and above[self.low - self._base]:
            self._advance()

    def skip(self, start: int, end: int) -> None:
        """The log does not hold the offsets from `start` to before `end` (control records, retention): finished by definition."""
        if start <= self.low:
            self.low = max(self.low, end)
            if self._above:
                self._advance()
        else:
            at = self._reach(end)
            self._above[at - (end - start) : at] = b"\x01" * (end - start)

    @property
    def finished_above(self) -> int:
        """How many offsets above the watermark are finished."""
        return self._above.count(1, self.low - self._base)

    def _reach(self, end: int) -> int:
        """Room for all offsets before `end`; returns its index."""
        if not self._above:
            self._base = self.low
        at = end - self._base
        if at > len(self._above):
            self._above.extend(bytes(at - len(self._above)))
        return at

    def _advance(self) -> None:
        start = self.low - self._base
        at = self._above.find(0, start) if start < len(self._above) else -1
        if at >= 0:
            self.low = self._base + at
            if at >= TRIM_BYTES:
                del self._above[:at]
                self._base = self.low
        else:
            self.low = max(self.low, self._base + len(self._above))
            self._above.clear()

    def metadata(self, since_ms: int, bytes_max: int) -> str:
        """`VERSION:since_ms:bitmap`; the bitmap is cut (losing only the knowledge of finished work) where it would not fit."""
        head = f"{VERSION}:{since_ms}:"
        start = self.low - self._base
        above = self._above[start : start + SPAN_MAX]
        span = above.rfind(1) + 1
        while span > 0:
            bitmap = np.packbits(np.frombuffer(above, np.uint8, span), bitorder="little").tobytes()
            text = b64encode(zlib.compress(bitmap, 6)).decode()
            if len(head) + len(text) <= bytes_max:
                return head + text
            span //= 2
        return head


def restore(low: int, metadata: str) -> tuple[Watermark, int]:
    """(watermark, since_ms) from a committed offset and its metadata; foreign metadata (somebody reset the group) says nothing."""
    parts = metadata.split(":")
    if len(parts) != 3 or parts[0] != VERSION or not (parts[1].isascii() and parts[1].isdigit()):
        return Watermark(low), 0
    since_ms = int(parts[1])
    try:
        bitmap = zlib.decompress(b64decode(parts[2], validate=True)) if parts[2] else b""
    except (binascii.Error, zlib.error, ValueError):
        bitmap = b""
    above = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").tobytes()
    return Watermark(low, above, since_ms), since_ms
