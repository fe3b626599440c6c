# pyright: reportUnknownMemberType=false
# (pynq carries no types)
"""An emulated board in the process that drives it, made from the settings in its worker's `--device`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from workers.fpga.emulator.board import BoardSettings, EmulatedBoard
from workers.fpga.emulator.device import EmulatedDevice
from workers.fpga.emulator.fabrics import fabric_maker


def emulated_device(settings: bytes, cache_folder: Path) -> tuple[Any, Callable[[str], bytes]]:
    """The device, and how its files are read. Raises msgspec.DecodeError, ValueError."""
    stated = msgspec.json.decode(settings, type=BoardSettings) if settings else BoardSettings()
    device = EmulatedDevice(EmulatedBoard(stated, fabric_maker(stated.fabric, cache_folder)))
    return device, device.files.read
