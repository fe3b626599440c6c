"""A fabric of verilated RTL: rows go through the accelerator's AXI streams clock edge by clock edge, and the cycles are counted."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.fpga.design import AXI_DMA, Design
from workers.fpga.emulator.fabric import Bytes, stream_packing
from workers.fpga.network import Network
from workers.fpga.rtl.compiling import compiled
from workers.fpga.rtl.generating import memory_files

CONTROL, ROWS, CYCLES = 0x00, 0x10, 0x28
START, DONE = 1, 2
SLACK_CYCLES = 10_000


class RtlFabric:
    """The accelerator of workers/fpga/rtl, as the design configures it."""

    def __init__(self, design: Design, network: Network, cache_folder: Path) -> None:
        """Raises ValueError for a design that the RTL cannot be, DeviceUnavailable where it cannot be compiled."""
        source, sink = stream_packing(design.source), stream_packing(design.sink)
        if design.flow != AXI_DMA or source.datatype.bits != 8 or sink.datatype.bits != 32:
            raise ValueError("the RTL accelerator streams 8-bit inputs and 32-bit outputs over an AXI DMA")
        self._network, self._source_bytes, self._sink_bytes = network, source.row_bytes, sink.row_bytes
        self._library = _library(compiled(network, cache_folder))
        # The memories are read when the model starts, as a bitfile fills block RAM.
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            arguments = [b"fabric"]
            for name, text in memory_files(network).items():
                path = Path(folder) / name
                path.write_text(text)
                arguments.append(f"+{path.stem}={path}".encode())
            self._handle: Any = self._library.simulation_new(len(arguments), (ctypes.c_char_p * len(arguments))(*arguments))

    @property
    def clock_edges(self) -> int:
        """All since the start, register accesses included."""
        return int(self._library.simulation_cycles(self._handle))

    def run(self, data: Bytes, rows: int) -> tuple[Bytes, int]:
        library, handle = self._library, self._handle
        source = np.ascontiguousarray(data).reshape(-1)
        out = np.zeros(rows * self._sink_bytes // 4, np.uint32)
        last = ctypes.c_int()
        library.simulation_write(handle, ROWS, rows)
        library.simulation_write(handle, CONTROL, START)
        limit = (source.size + out.size) * 4 + SLACK_CYCLES
        came = library.simulation_stream(handle, source.ctypes.data, source.size, out.ctypes.data, out.size, limit, ctypes.byref(last))
        if came != out.size or last.value != out.size - 1:
            raise RuntimeError(f"the RTL gave {came} of {out.size} words, the last one marked at {last.value}")
        cycles = int(library.simulation_read(handle, CYCLES))
        if not library.simulation_read(handle, CONTROL) & DONE:
            raise RuntimeError("the RTL gave everything and is not done")
        return out.view(np.uint8).reshape(rows, self._sink_bytes), cycles

    def set_weights(self, words: NDArray[np.uint32]) -> None:
        raise NotImplementedError("the RTL accelerator has its weights in the bitfile")

    def close(self) -> None:
        if self._handle is not None:
            self._library.simulation_delete(self._handle)
            self._handle = None


def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, word = ctypes.c_void_p, ctypes.c_uint32
    library.simulation_new.restype = pointer
    library.simulation_new.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    library.simulation_delete.argtypes = [pointer]
    library.simulation_cycles.restype, library.simulation_cycles.argtypes = ctypes.c_uint64, [pointer]
    library.simulation_write.argtypes = [pointer, word, word]
    library.simulation_read.restype, library.simulation_read.argtypes = word, [pointer, word]
    library.simulation_stream.argtypes = [
        pointer, pointer, ctypes.c_int, pointer, ctypes.c_int, ctypes.c_int64, ctypes.POINTER(ctypes.c_int)
    ]  # fmt: skip
    return library
