"""A tensor between stages: raw little-endian bytes with a head, sliced and joined without being decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from schemas.datatypes import BYTES, DATATYPES, Array, datatype_of, elements_of, from_raw, to_raw

_LENGTH = struct.Struct("<I")


class Tensor(msgspec.Struct, frozen=True):
    """`data`: row-major little-endian bytes; of BYTES each element behind its 4-byte length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @staticmethod
    def of(name: str, values: Array) -> Tensor:
        """An array's bytes. Raises ValueError for an array without datatype."""
        datatype = datatype_of(values)
        return Tensor(name, datatype.name, values.shape, to_raw(values, datatype))

    def row(self, index: int) -> Tensor:
        """Row `index` of the first axis, with a first axis of 1. Raises ValueError where there is no such row."""
        count = self._count()
        if not 0 <= index < count:
            raise ValueError(f"tensor {self.name!r} has {count} rows, not a row {index}")
        starts = self._starts(index + 1)
        return self._slice(starts[index], starts[index + 1])

    def rows(self) -> list[Tensor]:
        """Every row, as `row` gives them. Raises ValueError where the tensor has no first axis or the bytes do not fit the shape."""
        starts = self._starts(self._count())
        return [self._slice(start, end) for start, end in pairwise(starts)]

    def values(self) -> Array:
        """The tensor as an array (over the bytes, not a copy, but for BYTES). Raises ValueError saying what does not fit."""
        datatype = DATATYPES.get(self.datatype)
        if datatype is None:
            raise ValueError(f"tensor {self.name!r} has the unknown datatype {self.datatype!r}")
        return from_raw(self.data, 0, datatype, elements_of(self.shape)).reshape(self.shape)

    def named(self, name: str) -> Tensor:
        """The same tensor under another name."""
        return self if name == self.name else Tensor(name, self.datatype, self.shape, self.data)

    @staticmethod
    def join(tensors: Sequence[Tensor]) -> Tensor:
        """One after the other along the first axis. Raises ValueError naming the first that does not go with the others."""
        first = tensors[0]
        rest, rows = first.shape[1:], 0
        for index, tensor in enumerate(tensors):
            if tensor.datatype != first.datatype or not tensor.shape or tensor.shape[1:] != rest:
                ours, other = f"{first.datatype}{list(first.shape)}", f"{tensor.datatype}{list(tensor.shape)}"
                raise ValueError(f"tensor {first.name!r}: row 0 is {ours} and row {index} is {other}, which cannot be joined")
            rows += tensor.shape[0]
        return Tensor(first.name, first.datatype, (rows, *rest), b"".join([tensor.data for tensor in tensors]))

    def _count(self) -> int:
        if not self.shape:
            raise ValueError(f"tensor {self.name!r} has no first axis, so it has no rows")
        return self.shape[0]

    def _slice(self, start: int, end: int) -> Tensor:
        return Tensor(self.name, self.datatype, (1, *self.shape[1:]), memoryview(self.data)[start:end])

    def _starts(self, count: int) -> list[int]:
        """Where the first `count` rows start, and where the last of them ends."""
        if self.datatype == BYTES.name:
            return self._byte_starts(count)
        size, left = divmod(len(self.data), self.shape[0]) if self.shape[0] else (0, len(self.data))
        if left:
            raise ValueError(f"tensor {self.name!r}: {len(self.data)} bytes are not {self.shape[0]} equal rows")
        return [size * index for index in range(count + 1)]

    def _byte_starts(self, count: int) -> list[int]:
        each = elements_of(self.shape[1:])
        starts, at = [0], 0
        for _ in range(count):
            for _ in range(each):
                if at + _LENGTH.size > len(self.data):
                    raise ValueError(f"tensor {self.name!r}: {len(self.data)} bytes end before its {elements_of(self.shape)} elements do")
                at += _LENGTH.size + _LENGTH.unpack_from(self.data, at)[0]
            starts.append(at)
        if at > len(self.data):
            raise ValueError(f"tensor {self.name!r}: its last element does not fit into the {len(self.data)} bytes")
        return starts
