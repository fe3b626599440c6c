"""What a board says of itself beyond pynq's API: its name, whether it is emulated, and how warm it is."""

from __future__ import annotations

import msgspec

BOARD_FILE = "/run/headrace-emulator/board.json"
"""Only emulated boards have it."""
BOARD_NAME_FILE = "/proc/device-tree/chosen/pynq_board"
_SENSOR = "/sys/bus/iio/devices/iio:device0/in_temp0_ps_temp_"
TEMPERATURE_FILES = (f"{_SENSOR}raw", f"{_SENSOR}offset", f"{_SENSOR}scale")
"""The system monitor of a Zynq UltraScale+: (raw + offset) x scale = thousandths of a degree Celsius."""


class BoardNote(msgspec.Struct, frozen=True, kw_only=True):
    """What an emulated board says of itself."""

    emulated: bool
    fabric: str
    part: str
    pid: int = 0


def decode_note(data: bytes) -> BoardNote:
    """Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=BoardNote)


def celsius(raw: bytes, offset: bytes, scale: bytes) -> float:
    """Raises ValueError for what are no numbers."""
    return round((float(raw) + float(offset)) * float(scale) / 1e3, 2)
