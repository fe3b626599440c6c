"""The two ways of getting a batch through an accelerator, register by register: Xilinx's AXI DMA, and the DMA engines that FINN generates.

Registers hold what is written to them: addresses and row counts are written when they change, not for each batch, because
through PYNQ.remote every access is a network round trip.
"""

from __future__ import annotations

from typing import Any, Protocol

from workers.fpga import registers_map as at

_LOW = 0xFFFFFFFF


class Hung(Exception):
    """The accelerator did not do what it should in time, or at all."""


class Dma(Protocol):
    """One batch at a time."""

    def start(self, addresses: tuple[int, int], rows: int, sizes: tuple[int, int]) -> None:
        """Addresses and sizes in bytes: source, sink."""
        ...

    def done(self) -> bool:
        """One look. Raises Hung for an error that the engine shows."""
        ...

    def check(self, sink_bytes: int) -> None:
        """Raises Hung where less came than should have."""
        ...


class _Cached:
    """Registers of one IP; a write of what is there already is left out."""

    def __init__(self, ip: Any) -> None:
        self._ip = ip
        self._written: dict[int, int] = {}

    def keep(self, offset: int, value: int) -> None:
        if self._written.get(offset) != value:
            self._ip.write(offset, value)
            self._written[offset] = value

    def write(self, offset: int, value: int) -> None:
        self._ip.write(offset, value)

    def read(self, offset: int) -> int:
        return int(self._ip.read(offset))


class StreamDma:
    """An AXI DMA in direct mode in front of an accelerator with ap_ctrl_hs registers; pynq's own driver has started both channels."""

    def __init__(self, dma: Any, accelerator: Any) -> None:
        self._dma, self._accelerator = _Cached(dma), _Cached(accelerator)

    def start(self, addresses: tuple[int, int], rows: int, sizes: tuple[int, int]) -> None:
        dma = self._dma
        self._accelerator.keep(at.ROWS, rows)
        self._accelerator.write(at.CONTROL, at.AP_START)
        # The receiver first: nothing may come before there is room for it. A written length starts a channel.
        for channel, address, size in ((at.RECEIVE, addresses[1], sizes[1]), (at.SEND, addresses[0], sizes[0])):
            dma.keep(channel + at.ADDRESS, address & _LOW)
            dma.keep(channel + at.ADDRESS_HIGH, address >> 32)
            dma.write(channel + at.LENGTH, size)

    def done(self) -> bool:
        status = self._dma.read(at.RECEIVE + at.STATUS)
        if status & (at.STATUS_ERRORS | at.STATUS_HALTED):
            raise Hung(f"the DMA engine stopped with status {status:#x}")
        return bool(status & at.STATUS_IDLE)

    def check(self, sink_bytes: int) -> None:
        came = self._dma.read(at.RECEIVE + at.LENGTH)
        if came != sink_bytes:
            raise Hung(f"{came} bytes came from the accelerator, expected {sink_bytes}")


class FinnDma:
    """FINN's IODMA pair: input and output engine, each with an address and a number of rows."""

    def __init__(self, idma: Any, odma: Any) -> None:
        self._idma, self._odma = _Cached(idma), _Cached(odma)

    def start(self, addresses: tuple[int, int], rows: int, sizes: tuple[int, int]) -> None:
        del sizes
        for engine, address in ((self._odma, addresses[1]), (self._idma, addresses[0])):
            engine.keep(at.DMA_ADDRESS, address & _LOW)
            engine.keep(at.DMA_ADDRESS_HIGH, address >> 32)
            engine.keep(at.DMA_ROWS, rows)
            engine.write(at.CONTROL, at.AP_START)

    def done(self) -> bool:
        return bool(self._odma.read(at.CONTROL) & at.AP_DONE)

    def check(self, sink_bytes: int) -> None:
        """These engines count rows, not bytes: done is all that they say."""
        del sink_bytes
