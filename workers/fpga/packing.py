"""Bit-exact packing of tensors as FPGA accelerators stream them: the innermost axis of the folded shape, first element in the lowest bits.

This is the layout of FINN's drivers (`reverse_inner` and `reverse_endian` both set): elements of n bits follow each other from the least
significant bit of the first byte on, and each innermost group is padded with zeros to whole bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

BITS_MAX = 64
_INTEGER = re.compile(r"(U?)INT([1-9][0-9]?)")
_NAMED = {"BIPOLAR": (1, -1, 1), "BINARY": (1, 0, 1), "TERNARY": (2, -1, 1), "BOOL": (1, 0, 1)}


class QuantizedType(msgspec.Struct, frozen=True):
    """A qonnx datatype: how many bits, which values."""

    name: str
    bits: int
    low: int
    high: int

    @property
    def container(self) -> np.dtype[Any]:
        """The smallest numpy integer that holds it, little-endian."""
        size = next(size for size in (1, 2, 4, 8) if self.bits <= 8 * size)
        return np.dtype(f"<{'i' if self.low < 0 else 'u'}{size}")

    def misfit(self, values: Array) -> str:
        """Why these values are not of this type; empty where they are."""
        if values.dtype.kind not in "iub":
            return f"{values.dtype} is no integer, {self.name} is"
        if not values.size or (values.dtype == self.container and self.bits == 8 * self.container.itemsize):
            return ""
        low, high = int(values.min()), int(values.max())
        if low < self.low or high > self.high:
            return f"it holds {low}..{high}, {self.name} is {self.low}..{self.high}"
        if self.name == "BIPOLAR" and not np.all(values):
            return "it holds 0, BIPOLAR is -1 or 1"
        return ""


def quantized_type(name: str) -> QuantizedType:
    """The datatype of this qonnx name. Raises ValueError for one that cannot be packed here."""
    if name in _NAMED:
        return QuantizedType(name, *_NAMED[name])
    match = _INTEGER.fullmatch(name)
    bits = int(match[2]) if match else 0
    if match is None or bits > BITS_MAX:
        raise ValueError(f"datatype {name!r} cannot be packed: it is none of INT1..INT64, UINT1..UINT64, {', '.join(sorted(_NAMED))}")
    if match[1]:
        return QuantizedType(name, bits, 0, (1 << bits) - 1)
    return QuantizedType(name, bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


class Packing:
    """How rows of one tensor lie in the board's memory; made once, used for each batch."""

    def __init__(self, datatype: QuantizedType, shape: Sequence[int], inner: int) -> None:
        """`shape` is of one row; `inner` is the innermost axis of its folded form. Raises ValueError where the one does not divide the other."""
        self.datatype = datatype
        self.shape = tuple(shape)
        self.elements = math.prod(self.shape)
        if inner < 1 or self.elements % inner:
            raise ValueError(f"a row of {self.elements} elements (shape {list(self.shape)}) does not fold into groups of {inner}")
        self._inner = inner
        self._groups = self.elements // inner
        self.group_bytes = (inner * datatype.bits + 7) // 8
        self.row_bytes = self._groups * self.group_bytes
        container = datatype.container
        self._whole = datatype.bits == 8 * container.itemsize
        self._dtype = container

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what `unpack` gives."""
        return self._dtype

    def pack(self, values: Array, out: Bytes) -> None:
        """Rows into `out` (rows x row_bytes). Raises ValueError for values that the datatype does not hold."""
        rows = values.shape[0]
        reason = self.datatype.misfit(values)
        if reason:
            raise ValueError(reason)
        if self._whole:
            # BOOL, or another integer whose values fit, takes one cast; the right type none.
            out.reshape(-1).view(self._dtype)[...] = values.reshape(-1)
        else:
            out[...] = self._packed_bits(values.reshape(rows * self._groups, self._inner)).reshape(rows, self.row_bytes)

    def unpack(self, data: Bytes) -> Array:
        """New rows out of (rows x row_bytes)."""
        rows = data.shape[0]
        if self._whole:
            return self.view(data).copy()
        return self._unpacked_bits(data.reshape(rows * self._groups, self.group_bytes)).reshape(rows, *self.shape)

    def view(self, data: Bytes) -> Array:
        """As unpack, but where no bit needs to move, these are the bytes themselves, and not a copy."""
        if not self._whole:
            return self.unpack(data)
        return np.ascontiguousarray(data).reshape(-1).view(self._dtype).reshape(data.shape[0], *self.shape)

    def _packed_bits(self, values: Array) -> Bytes:
        datatype = self.datatype
        if datatype.bits == 1:
            # -1 is the 0 of BIPOLAR, and the 1 of INT1.
            return np.packbits(values > 0 if datatype.name == "BIPOLAR" else values != 0, axis=1, bitorder="little")
        size = self._dtype.itemsize
        bytes_of = np.ascontiguousarray(values.astype(self._dtype)).view(np.uint8).reshape(*values.shape, size)
        bits = np.unpackbits(bytes_of, axis=2, bitorder="little")[:, :, : datatype.bits]
        return np.packbits(bits.reshape(values.shape[0], -1), axis=1, bitorder="little")

    def _unpacked_bits(self, data: Bytes) -> Array:
        datatype, inner = self.datatype, self._inner
        bits = np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")[:, : inner * datatype.bits]
        if datatype.bits == 1:
            ones = bits.astype(self._dtype)
            return ones * 2 - 1 if datatype.name == "BIPOLAR" else -ones if datatype.low < 0 else ones
        size = self._dtype.itemsize
        wide = np.zeros((data.shape[0], inner, 8 * size), np.uint8)
        wide[:, :, : datatype.bits] = bits.reshape(data.shape[0], inner, datatype.bits)
        if datatype.low < 0:
            wide[:, :, datatype.bits :] = wide[:, :, datatype.bits - 1 : datatype.bits]
        return np.packbits(wide, axis=2, bitorder="little").reshape(-1).view(self._dtype).reshape(data.shape[0], inner)
