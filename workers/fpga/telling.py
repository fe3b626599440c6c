"""What a board says of itself beyond pynq's API: its name, whether it is emulated, how warm it is, and what power it draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

BOARD_FILE = "/run/headrace-emulator/board.json"
"""Only emulated boards have it."""
BOARD_NAME_FILE = "/proc/device-tree/chosen/pynq_board"
_SENSOR = "/sys/bus/iio/devices/iio:device0/in_temp0_ps_temp_"
TEMPERATURE_FILES = (f"{_SENSOR}raw", f"{_SENSOR}offset", f"{_SENSOR}scale")
"""The system monitor of a Zynq UltraScale+: (raw + offset) x scale = thousandths of a degree Celsius."""
POWER_FOLDER = "/sys/class/hwmon/hwmon"
"""With a number: one sensor of the kernel's; those of power (INA226, INA260 and the like) measure one rail, in millionths of a watt."""
POWER_NAME = b"ina"
SENSORS_MAX = 64


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


def power_files(read: Callable[[str], bytes]) -> Iterator[str]:
    """The power sensors of a board; none where it has none. `read` raises OSError where there is no such file."""
    with contextlib.suppress(OSError):
        for number in range(SENSORS_MAX):
            if read(f"{POWER_FOLDER}{number}/name").startswith(POWER_NAME):
                yield f"{POWER_FOLDER}{number}/power1_input"


def watts(microwatts: Iterable[bytes]) -> float:
    """Of all rails. Raises ValueError for what are no numbers."""
    return round(sum(float(rail) for rail in microwatts) / 1e6, 2)
