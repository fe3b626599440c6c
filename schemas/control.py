"""What people tell the control loop: which optimizer plans, and whether the plan is pinned; one record in {p}.catalog."""

from __future__ import annotations

import msgspec

from schemas.decoding import strict

CONTROL_VERSION = 1
CONTROL_KEY_PREFIX = "control/"
CONTROL_KEY = b"control/settings"


class ControlSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Holds for whichever scaler leads, until it is changed."""

    optimizer: str = ""
    """Empty: the one that each scaler was started with."""
    pinned: bool = False
    """The plan in force stays; a rebinding that has begun is finished."""
    pin_reason: str = ""
    changed_by: str = ""
    changed_ms: int = 0
    version: int = CONTROL_VERSION


_encode = msgspec.json.Encoder().encode
_decode = strict(msgspec.json.Decoder(ControlSpec).decode)


def encode_control(spec: ControlSpec) -> bytes:
    """The value of the record."""
    return _encode(spec)


def decode_control(value: bytes) -> ControlSpec:
    """Raises msgspec.DecodeError (or ValidationError) for what is not such a record."""
    return _decode(value)
