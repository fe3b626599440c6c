# pyright: reportMissingImports=false, reportMissingModuleSource=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUntypedBaseClass=false, reportMissingParameterType=false, reportUnknownLambdaType=false
# (grpc and pynq's messages carry no types, and are installed in an environment of their own)
"""The emulated board as a PYNQ.remote server in a process of its own: `python -m workers.fpga.emulator SETTINGS`, the settings as JSON.

The services are those that boards run: files, memory-mapped registers, buffers. No interrupts, no deadlines, and objects that a reboot forgets.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
import msgspec
import numpy as np
from pynq.remote import buffer_pb2, buffer_pb2_grpc, mmio_pb2, mmio_pb2_grpc, remote_device_pb2, remote_device_pb2_grpc

from workers.fpga.emulator.board import BoardSettings, Counters, EmulatedBoard
from workers.fpga.emulator.fabrics import fabric_maker
from workers.fpga.emulator.faults import REBOOT, decode_fault
from workers.fpga.emulator.files import FAULT_FILE, BoardFiles

PORT = 7967
THREADS = 4
FILE_CHUNK, BUFFER_CHUNK = 1 << 10, 1 << 20


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, and which board to be."""

    address: str
    board: BoardSettings = BoardSettings()
    cache_folder: str
    """Where compiled fabrics are kept."""
    ready_file: str = ""
    """Written when it listens."""


class _Objects:
    """Handles given to clients; a reboot forgets them all."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._count, self._known = prefix, itertools.count(), dict[str, Any]()

    def add(self, value: Any) -> str:
        key = f"{self._prefix}{next(self._count)}"
        self._known[key] = value
        return key

    def get(self, key: str, context: Any, what: str) -> Any:
        found = self._known.get(key)
        return _refuse(context, grpc.StatusCode.NOT_FOUND, f"{what} not found.") if found is None else found

    def pop(self, key: str, context: Any, what: str) -> Any:
        found = self.get(key, context, what)
        del self._known[key]
        return found

    def clear(self) -> None:
        self._known.clear()


class DeviceService(remote_device_pb2_grpc.RemoteDeviceServicer):
    """Files, and with them the FPGA manager."""

    def __init__(self, board: EmulatedBoard, objects: Iterable[_Objects]) -> None:
        self._board, self._files, self._objects = board, BoardFiles(board), tuple(objects)

    def existsfile(self, request, context) -> Any:
        del context
        self._board.faults.gate()
        return remote_device_pb2.ExistsFileResponse(exists=self._files.exists(request.file_path))

    def readfile(self, request, context) -> Iterator[Any]:
        self._board.faults.gate()
        try:
            data = self._files.read(request.file_path)
        except FileNotFoundError:
            _refuse(context, grpc.StatusCode.NOT_FOUND, "File not found")
        for at in range(0, len(data), FILE_CHUNK):
            yield remote_device_pb2.ReadFileResponse(data=data[at : at + FILE_CHUNK])

    def writefile(self, requests, context) -> Any:
        chunks = list(requests)
        data = b"".join(chunk.data for chunk in chunks)
        path = chunks[0].file_path if chunks else ""
        try:
            self._files.write(path, data)
            if path == FAULT_FILE and decode_fault(data).kind == REBOOT:
                self._files.forget_firmware()
                for objects in self._objects:
                    objects.clear()
        except (ValueError, OSError, RuntimeError) as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return remote_device_pb2.WriteFileResponse()

    def set_bitstream_attrs(self, request, context) -> Any:
        del request, context
        return remote_device_pb2.SetBitstreamAttrsResponse(status=True)

    def set_pl_clk(self, request, context) -> Any:
        del request, context
        return remote_device_pb2.SetPlClkResponse(status=True)

    def shutdown(self, request, context) -> Any:
        del request, context
        return remote_device_pb2.ShutdownResponse(status=True)


class MmioService(mmio_pb2_grpc.MmioServicer):
    """Registers, a word at a time."""

    def __init__(self, board: EmulatedBoard, windows: _Objects) -> None:
        self._board, self._windows = board, windows

    def get_mmio(self, request, context) -> Any:
        del context
        return mmio_pb2.GetMmioResponse(status=True, mmio_id=self._windows.add(request.base_addr))

    def read(self, request, context) -> Any:
        base = self._windows.get(request.mmio_id, context, "MMIO Object")
        return mmio_pb2.ReadResponse(status=True, data=self._board.read32(base + request.offset))

    def write(self, request, context) -> Any:
        base = self._windows.get(request.mmio_id, context, "MMIO Object")
        # As the boards' server does: of longer data, only the first word is written.
        self._board.write32(base + request.offset, int.from_bytes(request.data[:4], "little"))
        return mmio_pb2.WriteResponse(status=True)


class BufferService(buffer_pb2_grpc.RemoteBufferServicer):
    """Contiguous buffers: (address, size) by handle."""

    def __init__(self, board: EmulatedBoard, buffers: _Objects) -> None:
        self._board, self._buffers = board, buffers

    def _get(self, request: Any, context: Any) -> tuple[int, int]:
        self._board.faults.gate()
        return self._buffers.get(request.buffer_id, context, "Buffer")

    def allocate(self, request, context) -> Any:
        try:
            address = self._board.allocate(max(request.size, 1))
        except MemoryError as error:
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return buffer_pb2.AllocateResponse(buffer_id=self._buffers.add((address, request.size)))

    def write(self, requests, context) -> Any:
        at, address, size = 0, -1, 0
        for request in requests:
            if address < 0:
                address, size = self._get(request, context)
            if at + len(request.data) > size:
                return buffer_pb2.BufferWriteResponse(msg="Buffer overflow.")
            self._board.memory.view(address + at, len(request.data))[:] = np.frombuffer(request.data, np.uint8)
            at += len(request.data)
        return buffer_pb2.BufferWriteResponse()

    def read(self, request, context) -> Iterator[Any]:
        address, size = self._get(request, context)
        for at in range(0, size, BUFFER_CHUNK):
            yield buffer_pb2.BufferReadResponse(data=self._board.memory.view(address + at, min(BUFFER_CHUNK, size - at)).tobytes())

    def freebuffer(self, request, context) -> Any:
        address, _ = self._buffers.pop(request.buffer_id, context, "Buffer")
        self._board.memory.release(address)
        return buffer_pb2.FreeBufferResponse()

    def flush(self, request, context) -> Any:
        self._get(request, context)
        return buffer_pb2.FlushResponse()

    def invalidate(self, request, context) -> Any:
        self._get(request, context)
        return buffer_pb2.InvalidateResponse()

    def physical_address(self, request, context) -> Any:
        return buffer_pb2.AddressResponse(address=self._get(request, context)[0])

    def virtual_address(self, request, context) -> Any:
        return buffer_pb2.AddressResponse(address=0x7F00_0000_0000 + self._get(request, context)[0])

    def cacheable(self, request, context) -> Any:
        self._get(request, context)
        return buffer_pb2.CacheableResponse(cacheable=True)


class _Counted(grpc.ServerInterceptor):
    """Counts calls, for whoever measures round trips."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self._counters.calls += 1
        return continuation(handler_call_details)


class BoardServer:
    """The board behind its port."""

    def __init__(self, settings: ServerSettings) -> None:
        self.board = EmulatedBoard(settings.board, fabric_maker(settings.board.fabric, Path(settings.cache_folder)))
        windows, buffers = _Objects("m"), _Objects("b")
        self._server = grpc.server(
            futures.ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)], interceptors=[_Counted(self.board.counters)]
        )
        remote_device_pb2_grpc.add_RemoteDeviceServicer_to_server(DeviceService(self.board, (windows, buffers)), self._server)
        mmio_pb2_grpc.add_MmioServicer_to_server(MmioService(self.board, windows), self._server)
        buffer_pb2_grpc.add_RemoteBufferServicer_to_server(BufferService(self.board, buffers), self._server)
        self.port = self._server.add_insecure_port(f"{settings.address}:{PORT}")
        if self.port != PORT:
            raise OSError(f"{settings.address}:{PORT} is taken: another board is there")

    @property
    def calls(self) -> int:
        """RPCs so far."""
        return self.board.counters.calls

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def wait(self) -> None:
        """Until it is stopped."""
        self._server.wait_for_termination()


def _refuse(context: Any, code: Any, reason: str) -> NoReturn:
    context.abort(code, reason)
    raise AssertionError  # abort() raises


def main() -> None:
    """Serve until the process ends, or its parent does."""
    settings = msgspec.json.decode(sys.argv[1], type=ServerSettings)
    server = BoardServer(settings)
    server.start()
    sys.stdout.write(f"board {settings.board.name} listens on {settings.address}:{PORT}, fabric {settings.board.fabric}\n")
    sys.stdout.flush()
    if settings.ready_file:
        Path(settings.ready_file).write_text("{}\n")
    if len(sys.argv) > 2:
        threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.wait()


def _end_with(parent: int) -> None:
    waiting = threading.Event()
    while os.getppid() == parent:
        waiting.wait(0.5)
    os._exit(0)
