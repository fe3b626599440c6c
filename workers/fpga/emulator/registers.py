"""Register files of the IPs that pynq drives: AXI DMA in direct mode (PG021), and the control block of HLS kernels, which FINN's DMAs have too."""

from __future__ import annotations

from collections.abc import Callable

from workers.fpga.design import IpAddress

AP_START, AP_DONE, AP_IDLE, AP_READY = 1, 2, 4, 8
RUN, RESET = 1, 4
HALTED, IDLE, INTERNAL_ERROR, SLAVE_ERROR, DECODE_ERROR, COMPLETE = 1, 2, 0x10, 0x20, 0x40, 0x1000
WRITE_ONE_TO_CLEAR = 0x7000
LENGTH_BITS = 26
SEND, RECEIVE = 0x00, 0x30


class Peripheral:
    """Plain registers, which hold what is written."""

    def __init__(self, address: IpAddress, constants: dict[int, int] | None = None) -> None:
        self.address = address
        self.values: dict[int, int] = {}
        self.constants = constants or {}

    def read(self, offset: int) -> int:
        found = self.constants.get(offset)
        return self.values.get(offset, 0) if found is None else found

    def write(self, offset: int, value: int) -> None:
        self.values[offset] = value


class HlsControl(Peripheral):
    """ap_ctrl_hs: start, done (cleared when read), idle, ready."""

    def __init__(self, address: IpAddress, on_start: Callable[[], None], constants: dict[int, int] | None = None) -> None:
        super().__init__(address, constants)
        self._on_start = on_start
        self.busy = False
        self.done = False

    def read(self, offset: int) -> int:
        if offset:
            return super().read(offset)
        value = (AP_START if self.busy else AP_IDLE) | ((AP_DONE | AP_READY) if self.done else 0)
        self.done = False
        return value

    def write(self, offset: int, value: int) -> None:
        if offset:
            super().write(offset, value)
        elif value & AP_START and not self.busy:
            self.busy, self.done = True, False
            self._on_start()

    def finish(self) -> None:
        self.busy, self.done = False, True

    def wide(self, offset: int) -> int:
        """A 64-bit argument."""
        return self.values.get(offset, 0) | (self.values.get(offset + 4, 0) << 32)


class DmaChannel:
    """One direction of an AXI DMA."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        self._on_start = on_start
        self.reset()

    def reset(self) -> None:
        self.control, self.status, self.address, self.length = 0, HALTED, 0, 0
        self.pending = False

    def read(self, offset: int) -> int:
        found = {0x00: self.control, 0x04: self.status, 0x18: self.address & 0xFFFFFFFF, 0x1C: self.address >> 32, 0x28: self.length}
        return found.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if offset == 0x00:
            self._control(value)
        elif offset == 0x04:
            self.status &= ~(value & WRITE_ONE_TO_CLEAR)
        elif offset == 0x18:
            self.address = (self.address & ~0xFFFFFFFF) | value
        elif offset == 0x1C:
            self.address = (self.address & 0xFFFFFFFF) | (value << 32)
        elif offset == 0x28:
            self._start(value & ((1 << LENGTH_BITS) - 1))

    def _control(self, value: int) -> None:
        if value & RESET:
            self.reset()
            return
        self.control = value
        self.status = self.status & ~HALTED if value & RUN else self.status | HALTED
        if not value & RUN:
            self.pending = False

    def _start(self, length: int) -> None:
        if self.status & HALTED:
            return
        if length == 0:
            self.fail(INTERNAL_ERROR)
            return
        self.length, self.pending = length, True
        self.status &= ~IDLE
        self._on_start()

    def finish(self, transferred: int) -> None:
        self.pending, self.length = False, transferred
        self.status |= IDLE | COMPLETE

    def fail(self, error: int) -> None:
        """Errors halt the channel until it is reset."""
        self.pending = False
        self.status |= error | HALTED


class AxiDma(Peripheral):
    """Both directions; no interrupts reach the host, as on PYNQ.remote."""

    def __init__(self, address: IpAddress, on_start: Callable[[], None]) -> None:
        super().__init__(address)
        self.send, self.receive = DmaChannel(on_start), DmaChannel(on_start)

    def read(self, offset: int) -> int:
        return self.receive.read(offset - RECEIVE) if offset >= RECEIVE else self.send.read(offset)

    def write(self, offset: int, value: int) -> None:
        if offset >= RECEIVE:
            self.receive.write(offset - RECEIVE, value)
        else:
            self.send.write(offset, value)
            if offset == 0x00 and value & RESET:
                # A reset of either channel resets the engine.
                self.receive.reset()
