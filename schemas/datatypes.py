"""The datatypes of the Open Inference Protocol v2, and how their elements turn from lists and raw bytes into arrays and back."""

from __future__ import annotations

import math
import struct
from array import array as machine_array
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Datatype(msgspec.Struct, frozen=True):
    """One datatype: its name on the wire, the numpy dtype (little-endian), and what an element is in a list."""

    name: str
    dtype: np.dtype[Any]
    element: Any
    """The Python type that a list holds: bool, int, float or str."""
    typecode: str = ""
    """The array.array code that checks integer ranges while it copies; empty for what is not an integer."""


def _integer(name: str, dtype: str, typecode: str) -> Datatype:
    return Datatype(name, np.dtype(dtype), int, typecode)


DATATYPES: dict[str, Datatype] = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", np.dtype("?"), bool),
        _integer("UINT8", "<u1", "B"),
        _integer("UINT16", "<u2", "H"),
        _integer("UINT32", "<u4", "I"),
        _integer("UINT64", "<u8", "Q"),
        _integer("INT8", "<i1", "b"),
        _integer("INT16", "<i2", "h"),
        _integer("INT32", "<i4", "i"),
        _integer("INT64", "<i8", "q"),
        Datatype("FP16", np.dtype("<f2"), float),
        Datatype("FP32", np.dtype("<f4"), float),
        Datatype("FP64", np.dtype("<f8"), float),
        Datatype("BYTES", np.dtype(object), str),
    )
}
BYTES = DATATYPES["BYTES"]
_BY_DTYPE = {(d.dtype.kind, d.dtype.itemsize): d for d in DATATYPES.values() if d is not BYTES}
_LENGTH = struct.Struct("<I")


def datatype_of(values: Array) -> Datatype:
    """The datatype that carries an array; str, bytes and object arrays are BYTES. Raises ValueError where there is none."""
    dtype = values.dtype
    if dtype.kind in "OSU":
        return BYTES
    found = _BY_DTYPE.get((dtype.kind, dtype.itemsize))
    if found is None:
        raise ValueError(f"numpy {dtype} has no Open Inference Protocol datatype: use one of {', '.join(DATATYPES)}")
    return found


def from_list(values: list[Any], datatype: Datatype) -> Array:
    """A flat array of a flat list of `datatype.element` (str or bytes for BYTES). Raises ValueError naming the element out of range."""
    if datatype.element is int:
        return _integers(values, datatype)
    if datatype.element is float:
        return _floats(values, datatype)
    if datatype.element is bool:
        return np.frombuffer(bytes(values), np.bool_)
    return np.array([_as_bytes(value) for value in values], dtype=object)


def _integers(values: list[int], datatype: Datatype) -> Array:
    try:
        # bytes() is three times as fast as array() for what images are made of; both check the range of each element in C.
        flat = bytes(values) if datatype.typecode == "B" else machine_array(datatype.typecode, values)
    except (OverflowError, ValueError):
        low, high = np.iinfo(datatype.dtype).min, np.iinfo(datatype.dtype).max
        at, value = next((at, value) for at, value in enumerate(values) if not low <= value <= high)
        shown = value if abs(value) < 1 << 64 else "over 64 bits"
        raise ValueError(f"element {at} is {shown}, {datatype.name} holds {low}..{high}") from None
    # array.array holds the machine's own byte order.
    return np.frombuffer(flat, datatype.dtype.newbyteorder("="))


def _floats(values: list[float], datatype: Datatype) -> Array:
    wide = np.array(values, dtype=np.float64)
    if datatype.dtype.itemsize == wide.itemsize:
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(datatype.dtype)
    lost = np.isinf(narrow) & ~np.isinf(wide)
    if lost.any():
        at = int(lost.argmax())
        raise ValueError(f"element {at} is {values[at]}, {datatype.name} holds at most {np.finfo(datatype.dtype).max}")
    return narrow


def from_raw(data: Any, offset: int, datatype: Datatype, count: int) -> Array:
    """A flat array over (not a copy of) the little-endian bytes of `data` after `offset`. Raises ValueError saying what does not fit.

    BYTES elements have a 4-byte little-endian length before each (the v2 binary layout); BOOL is one byte each, 0 or 1.
    """
    view = memoryview(data)[offset:]
    if datatype is BYTES:
        return _byte_strings(view, count)
    expected = count * datatype.dtype.itemsize
    if len(view) != expected:
        raise ValueError(f"expected {expected} bytes ({count} x {datatype.dtype.itemsize}), got {len(view)}")
    flat = np.frombuffer(view, datatype.dtype, count)
    if datatype.element is bool and count and flat.view(np.uint8).max() > 1:
        raise ValueError(f"element {int((flat.view(np.uint8) > 1).argmax())} is neither 0 nor 1")
    return flat


def _byte_strings(view: memoryview, count: int) -> Array:
    if len(view) < count * _LENGTH.size:
        raise ValueError(f"expected {count} elements with a 4-byte length before each, got {len(view)} bytes")
    elements: list[bytes] = []
    at = 0
    for index in range(count):
        end = at + _LENGTH.size
        length = _LENGTH.unpack_from(view, at)[0] if end <= len(view) else 0
        if end + length > len(view):
            raise ValueError(f"element {index} of {count} does not fit into the {len(view)} bytes")
        elements.append(bytes(view[end : end + length]))
        at = end + length
    if at != len(view):
        raise ValueError(f"{len(view) - at} bytes are left over after {count} elements")
    return np.array(elements, dtype=object)


def to_list(values: Array, datatype: Datatype) -> list[Any]:
    """A flat list for JSON; BYTES become text. Raises ValueError for bytes that are not UTF-8."""
    if datatype is not BYTES:
        return values.ravel().tolist()
    try:
        return [_as_bytes(value).decode() for value in values.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"a BYTES element is not UTF-8 text ({error.reason}), which JSON cannot carry: use msgpack") from None


def to_raw(values: Array, datatype: Datatype) -> bytes:
    """Little-endian bytes in row-major order; BYTES with a 4-byte length before each element."""
    if datatype is not BYTES:
        return values.astype(datatype.dtype, copy=False).tobytes()
    elements = [_as_bytes(value) for value in values.ravel().tolist()]
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a BYTES tensor holds bytes or text, not {type(value).__name__}")


def elements_of(shape: Sequence[int]) -> int:
    """Number of elements of a shape; Python integers do not overflow."""
    return math.prod(shape)
