"""Reads a checkpoint in the format that PyTorch wrote before 1.6, without PyTorch, and executes nothing of the pickle in it.

The file is five pickles (magic number, protocol, system, tensors, names of storages), then each storage's length and bytes.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

DATATYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8"), "HalfStorage": np.dtype("<f2")}
HEADERS = 3
"""Pickles before that of the tensors."""
ELEMENTS_MAX = 1 << 28


class CheckpointRefused(Exception):
    """The file is no such checkpoint, or would execute something."""


class _Storage:
    """Elements that come later in the file."""

    def __init__(self, datatype: np.dtype[Any], elements: int) -> None:
        self.datatype, self.elements = datatype, elements
        self.values: NDArray[Any] = np.empty(0, datatype)


class _Tensor:
    """A view of a storage."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> None:
        self._storage, self._offset, self._shape, self._strides = storage, offset, shape, strides

    def array(self) -> NDArray[Any]:
        values = self._storage.values
        last = self._offset + sum((length - 1) * stride for length, stride in zip(self._shape, self._strides, strict=True))
        if self._offset < 0 or min((*self._shape, *self._strides, 1)) < 0 or last >= len(values):
            raise CheckpointRefused("a tensor reaches beyond its storage")
        steps = [stride * values.itemsize for stride in self._strides]
        return np.lib.stride_tricks.as_strided(values[self._offset :], self._shape, steps).copy()


class _Unpickler(pickle.Unpickler):
    """Knows what tensors are made of, and refuses every other name."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in DATATYPES:
            return name
        raise CheckpointRefused(f"the checkpoint names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, elements, *_ = pid
        if not 0 <= elements <= ELEMENTS_MAX:
            raise CheckpointRefused(f"a storage of {elements} elements")
        return self.storages.setdefault(key, _Storage(DATATYPES[kind], elements))


def read_checkpoint(data: bytes) -> dict[str, NDArray[Any]]:
    """Tensors by name. Raises CheckpointRefused."""
    file = io.BytesIO(data)
    try:
        for _ in range(HEADERS):
            _Unpickler(file).load()
        unpickler = _Unpickler(file)
        tensors = unpickler.load()
        for key in _Unpickler(file).load():
            _fill(unpickler.storages[key], file)
        return {name: tensor.array() for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise CheckpointRefused(f"this is no checkpoint: {error}") from None


def _fill(storage: _Storage, file: BinaryIO) -> None:
    (elements,) = struct.unpack("<q", file.read(8))
    if elements != storage.elements:
        raise CheckpointRefused(f"a storage of {elements} elements where {storage.elements} were announced")
    storage.values = np.frombuffer(file.read(elements * storage.datatype.itemsize), storage.datatype)
    if len(storage.values) != elements:
        raise CheckpointRefused("the file ends in the middle of a storage")
