# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false, reportAttributeAccessIssue=false
# (pynq carries no types, and is installed in an environment of its own)
"""The emulated board as a `pynq.Device` of this process: pynq's own extension point, below Overlay, allocate, MMIO and DMA."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from pynq.buffer import PynqBuffer
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser

from workers.fpga.emulator.board import EmulatedBoard
from workers.fpga.emulator.files import BoardFiles

ARCHITECTURE = "aarch64"


class BusArray(np.ndarray[Any, Any]):
    """What mmap() gives on a real board: words that are bus cycles, one for each element read or written."""

    def __new__(cls, board: EmulatedBoard, base: int, length: int) -> BusArray:
        self = np.zeros(length // 4, np.uint32).view(cls)
        self._board, self._base, self._root = board, base, self.__array_interface__["data"][0]
        return self

    def __array_finalize__(self, obj: Any) -> None:
        self._board: Any = getattr(obj, "_board", None)
        self._base: int = getattr(obj, "_base", 0)
        self._root: int = getattr(obj, "_root", 0)

    def _address(self, index: int) -> int:
        index = index + self.shape[0] if index < 0 else index
        if not 0 <= index < self.shape[0]:
            raise IndexError(index)
        return self._base + self.__array_interface__["data"][0] - self._root + index * self.itemsize

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            address = self._address(int(key))
            return sum(self._board.read32(address + at) << (8 * at) for at in range(0, self.itemsize, 4))
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, int | np.integer):
            address, number = self._address(int(key)), int(value)
            for at in range(0, self.itemsize, 4):
                self._board.write32(address + at, (number >> (8 * at)) & 0xFFFFFFFF)
            return
        places = range(*key.indices(self.shape[0]))
        for place, word in zip(places, np.broadcast_to(np.asarray(value), (len(places),)), strict=True):
            self[place] = int(word)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.copy:
            return np.array([self[index] for index in range(self.shape[0])], self.dtype)
        return super().__array_function__(func, types, args, kwargs)


class _Memory:
    """pynq's notion of a memory: allocates buffers whose host side is apart from the board's."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device, self.idx, self.base_address = device, 0, 0
        self.size = device.board.memory.size

    def allocate(self, shape: Any, dtype: Any = "u4", cacheable: int = 1, **_others: Any) -> Any:
        del cacheable
        shape = (shape,) if np.isscalar(shape) else tuple(shape)
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        address = self.device.board.allocate(max(size, 1))
        host = np.zeros(size, np.uint8)
        buffer = PynqBuffer(shape, dtype, buffer=host.data, device=self.device, device_address=address, bo=address, coherent=False)
        buffer.memory, buffer.pointer, buffer.return_to = self, (address, host), self
        return buffer

    def return_pointer(self, pointer: tuple[int, Any]) -> None:
        self.device.board.memory.release(pointer[0])


class EmulatedDevice(pynq.Device):
    """Memory-mapped, as on a Zynq; made by whoever wants one, never found by probing."""

    def __init__(self, board: EmulatedBoard) -> None:
        super().__init__("emulated")
        self.board = board
        self.files = BoardFiles(board)
        self.name, self.arch = board.settings.name, ARCHITECTURE
        self.capabilities = {"MEMORY_MAPPED": True}
        self.default_memory = _Memory(self)
        self.bitfile_name: str | None = None
        self.timestamp: str | None = None

    def mmap(self, base: int, length: int) -> BusArray:
        return BusArray(self.board, base, length)

    def flush(self, buffer: int, offset: int, address: int, size: int) -> None:
        self.board.faults.gate()
        self.board.memory.view(buffer + offset, size)[:] = _host_bytes(address, size)

    def invalidate(self, buffer: int, offset: int, address: int, size: int) -> None:
        self.board.faults.gate()
        _host_bytes(address, size)[:] = self.board.memory.view(buffer + offset, size)

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:  # noqa: FBT001, FBT002 - pynq's signature
        del partial
        parser = RuntimeMetadataParser(Metadata(input=Path(bitfile_name).with_suffix(".hwh")))
        parser.refresh_hierarchy_dict()
        return parser

    def download(self, bitstream: Any, parser: Any = None) -> None:
        self.board.program_bit(Path(bitstream.bitfile_name).read_bytes())
        self.post_download(bitstream, parser, self.name)

    def get_memory(self, _description: Any) -> _Memory:
        return self.default_memory


def _host_bytes(address: int, size: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
