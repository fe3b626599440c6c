# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# (pynq and grpc carry no types, and are installed in an environment of their own)
"""One board, driven through pynq's public API: Overlay, allocate, DMA, MMIO, Clocks. Runs in the board's own process.

pynq waits without end: DMA.wait() spins, a remote call has no deadline. So nothing here waits through pynq; the accelerator is polled with a
deadline, and calls that never return are ended by the worker, with the process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pynq
import pynq.lib.dma
from pynq.pl_server.remote_device import RemoteDevice

from workers.fpga import board_messages as say
from workers.fpga.design import AXI_DMA
from workers.fpga.flows import Dma, FinnDma, Hung, StreamDma
from workers.fpga.packing import Bytes
from workers.fpga.telling import BOARD_FILE, TEMPERATURE_FILES, BoardNote, celsius, decode_note, power_files, watts

EMULATED = "emulated"
CLOCK_TOLERANCE = 0.02
CLOCK_TRIES = 5
SENSORS_S = 5.0


class NotPossible(Exception):
    """What was asked cannot be done; the board is well."""


class _Part(msgspec.Struct):
    """So many rows of a variant's buffers, and where they lie in the memory that the worker sees."""

    source: Any
    source_bytes: Bytes
    source_shared: Bytes
    sink: Any
    sink_bytes: Bytes
    sink_shared: Bytes


class _Variant(msgspec.Struct):
    load: say.Load
    source: Any
    sink: Any
    addresses: tuple[int, int]
    """Physical ones: asked for once, as each question is a round trip."""
    parts: dict[tuple[int, int], _Part] = {}
    """By rows and slot: pynq's buffers are slow to slice."""


class Session:
    """The board with its variants; at most one overlay is on it at a time."""

    def __init__(self, order: say.Open, shared: Bytes) -> None:
        self._areas = say.areas(shared)
        self._device, self._read_file = _open(order)
        pynq.Device.active_device = self._device
        self._note = self._read_note()
        self._target = order.target
        self._variants: dict[str, _Variant] = {}
        self._overlay: Any = None
        self._active: say.Load | None = None
        self._dma: Dma | None = None
        self._clock_mhz, self._clock_wanted_mhz = 0.0, 0.0
        self._temperature_celsius, self._power_watts = 0.0, 0.0
        self._power_files = tuple(power_files(self._read_file))
        threading.Thread(target=self._watch_sensors, name="sensors", daemon=True).start()

    @property
    def is_remote(self) -> bool:
        """Reached over the network."""
        return bool(self._device.has_capability("REMOTE"))

    def opened(self) -> say.Opened:
        note = self._note
        return say.Opened(
            name=str(self._device.name),
            kind=EMULATED if note else "real",
            fabric=note.fabric if note else "programmable logic",
            reached="here" if not self._target or self._target == EMULATED else self._target,
            part=note.part if note else "",
            runtime=f"pynq {pynq.__version__}",
        )

    def load(self, order: say.Load) -> say.Loaded:
        """Allocates for the largest batch, once. Raises NotPossible."""
        self.unload(order.key)
        try:
            source = pynq.allocate((order.rows_max, order.source_row_bytes), np.uint8, target=self._device)
            sink = pynq.allocate((order.rows_max, order.sink_row_bytes), np.uint8, target=self._device)
        except (MemoryError, RuntimeError) as error:
            raise NotPossible(f"no memory on the board for {order.rows_max} rows: {error}") from error
        self._variants[order.key] = _Variant(order, source, sink, (int(source.physical_address), int(sink.physical_address)))
        try:
            switched_ms = self._switch(order)
        except BaseException:
            self.unload(order.key)
            raise
        return say.Loaded(reconfigured_ms=switched_ms, clock_mhz=self._clock_mhz, memory_bytes=int(source.nbytes + sink.nbytes))

    def unload(self, key: str) -> None:
        # The last reference frees a buffer; asked to free one itself, pynq does it a second time when the object goes.
        self._variants.pop(key, None)

    def run(self, order: say.Run) -> say.Ran:
        """Raises NotPossible for a variant that is not loaded, Hung where the accelerator does not end in time."""
        variant = self._variants.get(order.key)
        if variant is None:
            raise NotPossible(f"{order.key} is not loaded")
        switched_ms = self._switch(variant.load, order.clock_mhz)
        part = variant.parts.get((order.rows, order.slot)) or self._part(variant, order.rows, order.slot)
        part.source_bytes[:] = part.source_shared
        part.source.flush()
        accelerator_ms, polls = self._compute(variant, part, order)
        part.sink_shared[:] = part.sink_bytes
        if order.twice:
            self._compute(variant, part, order)
            if not np.array_equal(part.sink_shared, part.sink_bytes):
                raise Hung("the same rows gave other results the second time: neither can be trusted")
        return say.Ran(
            accelerator_ms=accelerator_ms,
            polls=polls,
            switched_ms=switched_ms,
            clock_mhz=self._clock_mhz,
            temperature_celsius=self._temperature_celsius,
            power_watts=self._power_watts,
        )

    def _part(self, variant: _Variant, rows: int, slot: int) -> _Part:
        source, sink = variant.source[:rows], variant.sink[:rows]
        source_area, sink_area = self._areas[slot]
        # PYNQ.remote fetches buffers whole; on the board itself only what was written needs to be looked at again.
        fetched = variant.sink if self.is_remote else sink
        part = _Part(source, _plain(source), source_area[: source.nbytes], fetched, _plain(sink), sink_area[: sink.nbytes])
        variant.parts[rows, slot] = part
        return part

    def _compute(self, variant: _Variant, part: _Part, order: say.Run) -> tuple[float, int]:
        """What lies in the board's input buffer into its output buffer, and that into view; milliseconds, and looks at the board."""
        assert self._dma is not None
        started_s = time.perf_counter()
        self._dma.start(variant.addresses, order.rows, (part.source_bytes.size, part.sink_bytes.size))
        polls = self._wait(order, started_s)
        self._dma.check(part.sink_bytes.size)
        accelerator_ms = (time.perf_counter() - started_s) * 1e3
        part.sink.invalidate()
        return accelerator_ms, polls

    def tell(self) -> say.Told:
        """Raises Hung, or what pynq raises, where the board is not as it was left: dead, or rebooted."""
        if self._dma is not None:
            self._dma.done()
        bitfile = Path(self._active.bitfile).stem if self._active else ""
        return say.Told(clock_mhz=self._clock_mhz, temperature_celsius=self._read_temperature(), power_watts=self._read_power(), bitfile=bitfile)

    def _read_temperature(self) -> float:
        with contextlib.suppress(OSError, ValueError):
            raw, offset, scale = (self._read_file(path) for path in TEMPERATURE_FILES)
            return celsius(raw, offset, scale)
        return 0.0

    def _read_power(self) -> float:
        with contextlib.suppress(OSError, ValueError):
            return watts(self._read_file(path) for path in self._power_files)
        return 0.0

    def _watch_sensors(self) -> None:
        """Beside the batches: a sensor is up to six round trips through PYNQ.remote. Ends where the board is lost, as the process then does."""
        waiting = threading.Event()
        while True:
            self._temperature_celsius, self._power_watts = self._read_temperature(), self._read_power()
            if not self._temperature_celsius and not self._power_watts:
                return
            waiting.wait(SENSORS_S)

    def _wait(self, order: say.Run, started_s: float) -> int:
        """Looks first when the result is expected, and then ever less often. The number of looks."""
        assert self._dma is not None
        deadline_s = started_s + order.deadline_ms / 1e3
        left_s = started_s + order.expected_ms / 1e3 - time.perf_counter()
        if left_s > _SLEEP_S_MIN:
            time.sleep(left_s)
        polls, pause_s = 1, max(order.expected_ms / 1e3 * _PAUSE_PART, _PAUSE_S_MIN)
        # A look at a board over the network is a round trip; on the board it is nothing, and sleeping takes longer than what is left.
        at_once_until_s = 0.0 if self.is_remote else time.perf_counter() + _SLEEP_S_MIN
        while not self._dma.done():
            now_s = time.perf_counter()
            if now_s > deadline_s:
                raise Hung(f"the accelerator did not end within {order.deadline_ms:.0f} ms")
            if now_s > at_once_until_s:
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)
            polls += 1
        return polls

    def _switch(self, load: say.Load, clock_mhz: float = 0.0) -> float:
        """Bring this overlay onto the board, where another one is, and set the clock; milliseconds."""
        active, clock_mhz = self._active, min(clock_mhz or load.clock_mhz, load.clock_mhz)
        if active is not None and (active.bitfile, active.weights) == (load.bitfile, load.weights):
            self._set_clock(clock_mhz)
            return 0.0
        started_s = time.perf_counter()
        self._active, self._dma, self._clock_wanted_mhz = None, None, 0.0
        try:
            self._overlay = pynq.Overlay(load.bitfile, device=self._device)
        except (ValueError, SyntaxError, KeyError) as error:
            raise NotPossible(f"the overlay cannot be loaded: {error}") from error
        for name in (*load.ips.values(), *(ip for ip, _ in load.weights)):
            if name not in self._overlay.ip_dict:
                raise NotPossible(f"IP {name!r} is not in the overlay, which has {', '.join(sorted(self._overlay.ip_dict))}")
        self._set_clock(clock_mhz)
        self._write_weights(load)
        ips = {role: getattr(self._overlay, name) for role, name in load.ips.items()}
        self._dma = StreamDma(ips["dma"], ips["accelerator"]) if load.flow == AXI_DMA else FinnDma(ips["idma"], ips["odma"])
        self._active = load
        return (time.perf_counter() - started_s) * 1e3

    def _set_clock(self, wanted_mhz: float) -> None:
        """The fabric's clock, as near as the dividers allow; a look at it costs round trips, so that it is set when it changes."""
        if self._clock_wanted_mhz == wanted_mhz:
            return
        aim_mhz = wanted_mhz
        for _ in range(CLOCK_TRIES):
            pynq.Clocks.fclk0_mhz = aim_mhz
            self._clock_mhz = float(pynq.Clocks.fclk0_mhz)
            # The nearest that the dividers give may be faster than the design can run.
            if self._clock_mhz <= wanted_mhz * (1 + CLOCK_TOLERANCE):
                self._clock_wanted_mhz = wanted_mhz
                return
            aim_mhz *= 0.93
        raise NotPossible(f"the clock would run at {self._clock_mhz} MHz, the design is for {wanted_mhz}")

    def _write_weights(self, load: say.Load) -> None:
        for ip, file in load.weights:
            words = np.fromfile(file, "<u4")
            mmio = getattr(self._overlay, ip).mmio
            if words.size * 4 > mmio.length:
                raise NotPossible(f"{words.size} words of runtime weights do not fit into the {mmio.length} bytes of {ip}")
            for index, word in enumerate(words.tolist()):
                mmio.write(4 * index, word)
            if any(mmio.read(4 * index) != word for index, word in enumerate(words.tolist())):
                raise NotPossible(f"{ip} does not hold the runtime weights that were written to it")

    def _read_note(self) -> BoardNote | None:
        with contextlib.suppress(OSError):
            return decode_note(self._read_file(BOARD_FILE))
        return None


def _plain(buffer: Any) -> Bytes:
    """The bytes of a buffer, without pynq's ways around them."""
    return np.asarray(buffer).reshape(-1)


_SLEEP_S_MIN = 0.0002
_PAUSE_S_MIN, _PAUSE_S_MAX = 0.0001, 0.005
_PAUSE_PART = 0.08
"""Of what a batch is expected to take: the first pause between two looks."""


def _open(order: say.Open) -> tuple[Any, Callable[[str], bytes]]:
    """pynq's device, and how files of the board are read."""
    if order.target == EMULATED:
        from workers.fpga.emulator.in_process import emulated_device  # noqa: PLC0415 - only for boards that are emulated here

        return emulated_device(order.board, Path(order.cache_folder))
    if order.target:
        device = RemoteDevice(0, order.target)

        def read(path: str) -> bytes:
            if not device.exists_file(path).exists:
                raise FileNotFoundError(path)
            return device.read_file(path)

        return device, read
    devices = pynq.Device.devices
    if not devices:
        raise NotPossible("pynq finds no board here: name one with --device (its address), or run this on the board")
    return devices[0], lambda path: Path(path).read_bytes()
