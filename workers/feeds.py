"""What goes into a model: one check of names, datatypes and rows before any runtime sees the arrays.

Runtimes disagree about wrong feeds: OpenVINO casts another datatype without a word. So none of them is asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.catalog import VariantSpec
from schemas.datatypes import DATATYPES
from workers.backend import Tensors


class Feeds:
    """Picks a variant's inputs out of a batch."""

    def __init__(self, spec: VariantSpec) -> None:
        self._expected = tuple((tensor.name, DATATYPES[tensor.datatype].dtype) for tensor in spec.inputs)

    def take(self, inputs: Tensors, rows: int) -> dict[str, NDArray[Any]]:
        """The arrays that the variant asks for, in its order. Raises ValueError naming the tensor that is missing or wrong."""
        taken: dict[str, NDArray[Any]] = {}
        for name, dtype in self._expected:
            array = inputs.get(name)
            if array is None:
                raise ValueError(f"input {name!r} is missing")
            if array.dtype != dtype:
                raise ValueError(f"input {name!r} is {array.dtype}, expected {dtype}")
            if not array.ndim or array.shape[0] != rows:
                raise ValueError(f"input {name!r} has shape {list(array.shape)}, expected {rows} rows")
            taken[name] = array
        return taken


def to_text(array: NDArray[Any]) -> NDArray[Any]:
    """An object array of `bytes` as one of `str`. Raises ValueError (UnicodeDecodeError) for bytes that are not UTF-8."""
    text = np.empty(array.size, dtype=object)
    text[:] = [value.decode() if isinstance(value, bytes) else str(value) for value in array.ravel().tolist()]
    return text.reshape(array.shape)


def to_bytes(array: NDArray[Any]) -> NDArray[Any]:
    """An array of `str` as an object array of `bytes`."""
    encoded = np.empty(array.size, dtype=object)
    encoded[:] = [value.encode() if isinstance(value, str) else bytes(value) for value in array.ravel().tolist()]
    return encoded.reshape(array.shape)
