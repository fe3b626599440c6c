"""The board's DDR as its DMA engines see it; what the host holds of a buffer is another copy, until it is flushed or invalidated."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

BASE = 0x1000_0000
PAGE = 4096


class DecodeError(Exception):
    """An address at which nothing answers."""


class BoardMemory:
    """Contiguous memory, handed out page by page, first fit."""

    def __init__(self, size: int) -> None:
        self._bytes: NDArray[np.uint8] = np.zeros(size, np.uint8)
        self._free: list[tuple[int, int]] = [(0, size)]
        self._live: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._bytes.size

    @property
    def buffers(self) -> int:
        """How many are allocated."""
        return len(self._live)

    def allocate(self, size: int) -> int:
        """Physical address of `size` bytes. Raises MemoryError."""
        needed = max(-(-size // PAGE), 1) * PAGE
        with self._lock:
            for index, (start, length) in enumerate(self._free):
                if length >= needed:
                    self._free[index : index + 1] = [(start + needed, length - needed)] if length > needed else []
                    self._live[start] = needed
                    # Memory of a new buffer holds whatever was there before.
                    self._bytes[start : start + needed] = 0xA5
                    return BASE + start
        raise MemoryError(f"no {needed} contiguous bytes are free on the board")

    def release(self, address: int) -> None:
        """Unknown addresses are no error: the board may have been reset meanwhile."""
        with self._lock:
            start = address - BASE
            length = self._live.pop(start, 0)
            if not length:
                return
            merged: list[tuple[int, int]] = []
            for at, size in sorted([*self._free, (start, length)]):
                if merged and sum(merged[-1]) == at:
                    merged[-1] = (merged[-1][0], merged[-1][1] + size)
                else:
                    merged.append((at, size))
            self._free = merged

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """These bytes, as the fabric reads and writes them. Raises DecodeError outside the memory."""
        start = address - BASE
        if start < 0 or size < 0 or start + size > self._bytes.size:
            raise DecodeError(f"no memory at {address:#x}..{address + size:#x}")
        return self._bytes[start : start + size]

    def reset(self) -> None:
        """As after a reboot: nothing is allocated, and nothing is as it was."""
        with self._lock:
            self._live.clear()
            self._free = [(0, self._bytes.size)]
            self._bytes[:] = 0xA5
