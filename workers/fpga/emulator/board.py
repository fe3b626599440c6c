"""The emulated board: memory, a bus with the IPs of the loaded design on it, clocks, and the fabric that computes. Knows nothing of pynq or gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.fpga.bitfile import read_bit
from workers.fpga.design import AXI_DMA, Design, decode_design
from workers.fpga.emulator.fabric import NUMPY, Fabric, NumpyFabric, stream_packing
from workers.fpga.emulator.faults import REBOOT, Fault, Faults
from workers.fpga.emulator.memory import BoardMemory, DecodeError
from workers.fpga.emulator.registers import DECODE_ERROR, INTERNAL_ERROR, AxiDma, DmaChannel, HlsControl, Peripheral
from workers.fpga.network import Network

MakeFabric = Callable[[Design, Network], Fabric]
PLL_REGISTERS = (0xFF5E0020, 0xFF5E0030, 0xFF5E0040, 0xFD1A0020, 0xFD1A002C, 0xFD1A0038)
PLL_RESET = (1 << 16) | (90 << 8)
"""Feedback 90, halved: 1,500 MHz from a 33.33 MHz crystal."""
CLOCK_REGISTERS = (0xFF5E00C0, 0xFF5E00C4, 0xFF5E00C8, 0xFF5E00CC)
CLOCK_RESET = (1 << 24) | (1 << 16) | (15 << 8)
SOURCE_MHZ = 33.333 * 90 / 2
ACCELERATOR_ROWS, ACCELERATOR_CYCLES, DMA_ROWS, DMA_ADDRESS = 0x10, 0x28, 0x1C, 0x10


class BoardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of board to be."""

    name: str = "EMU-ZCU104"
    part: str = "xczu7ev-ffvc1156-2-e"
    memory_bytes: int = 64 << 20
    fabric: str = NUMPY
    paced: bool = True
    """A batch takes cycles / clock of real time; else as long as computing it takes."""
    download_ms: float = 0.0
    temperature_celsius: float = 41.5


class Counters(msgspec.Struct):
    """What happened on the bus."""

    reads: int = 0
    writes: int = 0
    batches: int = 0
    cycles: int = 0
    downloads: int = 0
    calls: int = 0
    """RPCs, behind PYNQ.remote."""


class _Result(msgspec.Struct):
    """Computed, and to be seen from then on."""

    due_s: float
    deliver: Callable[[], None]


class EmulatedBoard:
    """One board. Every method may be called from any thread."""

    def __init__(self, settings: BoardSettings, make_fabric: MakeFabric = NumpyFabric) -> None:
        self.settings = settings
        self.memory = BoardMemory(settings.memory_bytes)
        self.faults = Faults()
        self.counters = Counters()
        self._make_fabric = make_fabric
        self._lock = threading.RLock()
        self._fabric: Fabric | None = None
        self._design: Design | None = None
        self._ips: list[Peripheral] = []
        self._result: _Result | None = None
        self._system = _system_registers()
        self._batch: Callable[[Design], None] = self._stream_batch

    # Configuration.

    @property
    def design(self) -> Design | None:
        return self._design

    @property
    def clock_mhz(self) -> float:
        """Of the fabric, from the first clock's dividers."""
        value = self._system[CLOCK_REGISTERS[0]]
        return SOURCE_MHZ / max((value >> 8) & 0x3F, 1) / max((value >> 16) & 0x3F, 1)

    def program(self, payload: bytes, part: str = "") -> None:
        """Configure the fabric. Raises ValueError for what is not for this board; the fabric is empty then."""
        self.faults.gate()
        time.sleep(self.settings.download_ms / 1e3)
        with self._lock:
            self._clear()
            design, network = decode_design(payload)
            if (part or design.part) != self.settings.part or design.part != self.settings.part:
                raise ValueError(f"the bitfile is for {part or design.part}, this board is {self.settings.part}")
            self._fabric = self._make_fabric(design, network)
            self._design = design
            self.faults.hangs = False
            self.counters.downloads += 1
            if design.flow == AXI_DMA:
                self._wire_stream(design)
            else:
                self._wire_finn(design)

    def program_bit(self, data: bytes) -> None:
        """The same, from a whole .bit file."""
        bit = read_bit(data)
        self.program(bit.payload, bit.part)

    def inject(self, fault: Fault) -> None:
        """Make something go wrong."""
        if fault.kind == REBOOT:
            with self._lock:
                self._clear()
                self._system = _system_registers()
                self.memory.reset()
        else:
            self.faults.take(fault)

    def _clear(self) -> None:
        if self._fabric is not None:
            self._fabric.close()
        self._fabric, self._design, self._result, self._ips = None, None, None, []

    def _wire_stream(self, design: Design) -> None:
        constants = {0x18: design.source.elements, 0x20: design.sink.elements}
        self._dma = AxiDma(design.ips["dma"], self._kick)
        self._accelerator = HlsControl(design.ips["accelerator"], self._kick, constants)
        self._ips = [self._dma, self._accelerator]
        self._batch = self._stream_batch

    def _wire_finn(self, design: Design) -> None:
        self._idma, self._odma = HlsControl(design.ips["idma"], self._kick), HlsControl(design.ips["odma"], self._kick)
        self._weights = Peripheral(design.ips["weights"]) if "weights" in design.ips else None
        self._ips = [self._idma, self._odma, *([self._weights] if self._weights else [])]
        self._batch = self._finn_batch

    # The bus.

    def read32(self, address: int) -> int:
        self.faults.gate()
        with self._lock:
            self.counters.reads += 1
            self._advance()
            ip = self._ip(address)
            return self._system.get(address, 0) if ip is None else ip.read(address - ip.address.base) & 0xFFFFFFFF

    def write32(self, address: int, value: int) -> None:
        self.faults.gate()
        with self._lock:
            self.counters.writes += 1
            self._advance()
            ip = self._ip(address)
            if ip is None:
                self._system[address] = value
            else:
                ip.write(address - ip.address.base, value)

    def allocate(self, size: int) -> int:
        """Physical address. Raises MemoryError."""
        self.faults.gate()
        if self.faults.no_memory:
            raise MemoryError("no contiguous memory is left on the board")
        return self.memory.allocate(size)

    def _ip(self, address: int) -> Peripheral | None:
        return next((ip for ip in self._ips if ip.address.base <= address < ip.address.base + ip.address.size), None)

    def _advance(self) -> None:
        """Results are seen when their time has come, not before."""
        if self._result is not None and time.monotonic() >= self._result.due_s:
            result, self._result = self._result, None
            result.deliver()

    # The data path.

    def _kick(self) -> None:
        if self._result is None and self._design is not None and not self.faults.hangs:
            self._batch(self._design)

    def _stream_batch(self, design: Design) -> None:
        send, receive, accelerator = self._dma.send, self._dma.receive, self._accelerator
        if not (accelerator.busy and send.pending and receive.pending):
            return
        rows = max(accelerator.values.get(ACCELERATOR_ROWS, 1), 1)
        source = self._readable(send, rows * stream_packing(design.source).row_bytes)
        if source is None:
            return
        sent = send.length

        def deliver(out: NDArray[np.uint8], cycles: int) -> None:
            send.finish(sent)
            accelerator.constants[ACCELERATOR_CYCLES] = cycles
            accelerator.finish()
            if out.size > receive.length:
                receive.fail(INTERNAL_ERROR)  # the packet is longer than the buffer
            else:
                self._store(receive, out)

        self._compute(source, rows, deliver)

    def _readable(self, send: DmaChannel, needed: int) -> NDArray[np.uint8] | None:
        """What the send channel reads; None where the accelerator waits for more than is sent, or there is no such memory."""
        try:
            data = self.memory.view(send.address, send.length)
        except DecodeError:
            send.fail(DECODE_ERROR)
            return None
        return data[:needed] if send.length >= needed else None

    def _store(self, receive: DmaChannel, out: NDArray[np.uint8]) -> None:
        try:
            self.memory.view(receive.address, out.size)[:] = out
        except DecodeError:
            receive.fail(DECODE_ERROR)
        else:
            receive.finish(out.size)

    def _finn_batch(self, design: Design) -> None:
        idma, odma = self._idma, self._odma
        if not (idma.busy and odma.busy):
            return
        rows = max(min(idma.values.get(DMA_ROWS, 0), odma.values.get(DMA_ROWS, 0)), 1)
        if self._weights is not None and design.weights_words:
            words = [self._weights.values.get(4 * index, 0) for index in range(design.weights_words)]
            assert self._fabric is not None
            self._fabric.set_weights(np.array(words, np.uint32))
        try:
            source = self.memory.view(idma.wide(DMA_ADDRESS), rows * stream_packing(design.source).row_bytes)
            self.memory.view(odma.wide(DMA_ADDRESS), rows * stream_packing(design.sink).row_bytes)
        except DecodeError:
            return  # the bus never answers, and the DMA never ends

        def deliver(out: NDArray[np.uint8], _cycles: int) -> None:
            self.memory.view(odma.wide(DMA_ADDRESS), out.size)[:] = out
            idma.finish()
            odma.finish()

        self._compute(source, rows, deliver)

    def _compute(self, source: NDArray[np.uint8], rows: int, deliver: Callable[[NDArray[np.uint8], int], None]) -> None:
        assert self._fabric is not None
        started_s = time.monotonic()
        out, cycles = self._fabric.run(source.reshape(rows, -1), rows)
        out = out.reshape(-1)
        self.counters.batches += 1
        self.counters.cycles += cycles
        if self.faults.corrupt > 0:
            self.faults.corrupt -= 1
            out = out.copy()
            out[out.size // 2] ^= 0x55
        busy_s = cycles / (self.clock_mhz * 1e6) if self.settings.paced else 0.0
        self._result = _Result(started_s + busy_s * self.faults.factor, lambda: deliver(out, cycles))
        self._advance()


def _system_registers() -> dict[int, int]:
    plls: dict[int, int] = dict.fromkeys(PLL_REGISTERS, PLL_RESET)
    return plls | dict.fromkeys(CLOCK_REGISTERS, CLOCK_RESET)
