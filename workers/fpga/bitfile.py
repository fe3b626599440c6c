"""Xilinx .bit containers: their header read and checked, and written around any payload."""

from __future__ import annotations

import struct

import msgspec

EMULATED = "emulated"
"""The tool version that stands in bitfiles for emulated boards."""
_PREAMBLE = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
_SHORT, _LONG = struct.Struct(">H"), struct.Struct(">I")


class BitFile(msgspec.Struct, frozen=True):
    """A bitfile's header, and its payload."""

    design: str
    version: str
    part: str
    payload: bytes

    @property
    def emulated(self) -> bool:
        """It describes a fabric for the emulator, and no real board can be configured with it."""
        return self.version == EMULATED


def read_bit(data: bytes) -> BitFile:
    """Raises ValueError for what is no .bit file, or not all of one."""
    try:
        fields, at = _read_fields(data, 2 + _SHORT.unpack_from(data)[0] + 2)
        (length,) = _LONG.unpack_from(data, at)
        at += _LONG.size
        name, _, rest = fields["a"].partition(";")
        design, version, part = name, rest.rpartition("Version=")[2], fields["b"]
    except (struct.error, KeyError, UnicodeDecodeError, IndexError):
        raise ValueError("it is no .bit file") from None
    if at + length != len(data):
        raise ValueError(f"it says {length} bytes of configuration, and holds {len(data) - at}")
    return BitFile(design, version, part, data[at:])


def _read_fields(data: bytes, at: int) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    while (key := chr(data[at])) != "e":
        if key not in "abcd":
            raise KeyError(key)
        (length,) = _SHORT.unpack_from(data, at + 1)
        fields[key] = data[at + 3 : at + 3 + length].decode("ascii").rstrip("\0")
        at += 3 + length
    return fields, at + 1


def write_bit(design: str, part: str, payload: bytes) -> bytes:
    """A bitfile for an emulated board; the payload is padded to whole words, as configuration data is."""
    payload += b"\0" * (-len(payload) % 4)
    fields = {"a": f"{design};UserID=0XFFFFFFFF;Version={EMULATED}", "b": part, "c": "2026/01/01", "d": "00:00:00"}
    head = b"".join(key.encode() + _SHORT.pack(len(value) + 1) + value.encode("ascii") + b"\0" for key, value in fields.items())
    return _PREAMBLE + head + b"e" + _LONG.pack(len(payload)) + payload
