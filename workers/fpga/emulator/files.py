"""The few files of a board's Linux that PYNQ reads and writes, as the emulated board has them, and two of its own: what it is, and its faults."""

from __future__ import annotations

import time

import msgspec
import numpy as np

from workers.fpga.emulator.board import EmulatedBoard
from workers.fpga.emulator.faults import decode_fault
from workers.fpga.emulator.power import PowerModel
from workers.fpga.telling import BOARD_FILE, BOARD_NAME_FILE, POWER_FOLDER, TEMPERATURE_FILES, BoardNote

COUNTERS_FILE = "/run/headrace-emulator/counters"
"""Read: what happened on the bus, as JSON."""
FAULT_FILE = "/run/headrace-emulator/fault"
"""Written to: a fault, as JSON."""
FIRMWARE_FOLDER = "/lib/firmware/"
FIRMWARE_FILE = "/sys/class/fpga_manager/fpga0/firmware"
POWER_FILE = f"{POWER_FOLDER}0/power1_input"
FILES_MAX = 64
_KELVIN = 273.15


class BoardFiles:
    """A tiny file system; firmware stays until a reboot, under its name: another bitfile under the same name is not noticed, as on real boards."""

    def __init__(self, board: EmulatedBoard) -> None:
        self._board, self._power = board, PowerModel()
        settings = board.settings
        note = BoardNote(emulated=True, fabric=settings.fabric, part=settings.part)
        self._files: dict[str, bytes] = {
            "/proc/version": b"Linux version 6.6.10-xilinx (aarch64) emulated by headrace\n",
            BOARD_NAME_FILE: settings.name.encode() + b"\0",
            BOARD_FILE: msgspec.json.encode(note),
            "/sys/class/fpga_manager/fpga0/state": b"operating",
            "/sys/class/fpga_manager/fpga0/flags": b"0",
            FIRMWARE_FILE: b"",
            f"{POWER_FOLDER}0/name": b"ina226\n",
            POWER_FILE: b"",
        }
        raw, offset, scale = TEMPERATURE_FILES
        # (raw + offset) x scale = thousandths of a degree Celsius, as the kernel's driver of the system monitor has it.
        self._files |= {raw: b"%d" % round((settings.temperature_celsius + _KELVIN) * 100), offset: b"-27315", scale: b"10.0"}

    def exists(self, path: str) -> bool:
        return path in self._files

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        if path == COUNTERS_FILE:
            return msgspec.json.encode(self._board.counters)
        if path == POWER_FILE:
            clock_mhz = self._board.clock_mhz if self._board.design else 0.0
            return b"%d\n" % round(self._power.watts(clock_mhz, self._board.counters.cycles, time.monotonic()) * 1e6)
        try:
            return self._files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def write(self, path: str, data: bytes) -> None:
        """Raises ValueError for what cannot be configured, or is no fault; OSError where the board is full."""
        if path == FAULT_FILE:
            self._board.inject(decode_fault(data))
            return
        if len(self._files) >= FILES_MAX and path not in self._files:
            self._drop_firmware()
        self._files[path] = data
        if path == FIRMWARE_FILE:
            image = self.read(FIRMWARE_FOLDER + data.decode().strip())
            # pynq sends the configuration with the bytes of each word turned round (.bin).
            self._board.program(np.frombuffer(image, "<i4").byteswap().tobytes())

    def forget_firmware(self) -> None:
        """As after a reboot, whose root file system is made anew."""
        self._drop_firmware()

    def _drop_firmware(self) -> None:
        for path in [path for path in self._files if path.startswith(FIRMWARE_FOLDER)]:
            del self._files[path]
