"""Tensors as raw bytes behind their heads: how they travel between stages, and what is checked before an array exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from schemas.catalog import TensorSpec
from schemas.datatypes import BYTES, DATATYPES, Array, datatype_of, elements_of, from_raw, to_raw
from schemas.limits import Limits
from schemas.stage import TensorHead

_NAME_CHARACTERS_MAX = 64


def encode_raw(tensors: Mapping[str, Array]) -> tuple[tuple[TensorHead, ...], list[bytes]]:
    """Heads and data, in the order of the mapping. Raises ValueError naming the tensor that has no datatype."""
    heads: list[TensorHead] = []
    parts: list[bytes] = []
    for name, values in tensors.items():
        try:
            datatype = datatype_of(values)
            part = to_raw(values, datatype)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
        heads.append(TensorHead(name, datatype.name, values.shape, len(part)))
        parts.append(part)
    return tuple(heads), parts


def decode_raw(
    data: bytes | bytearray | memoryview, offset: int, heads: Sequence[TensorHead], limits: Limits, *, specs: Sequence[TensorSpec] = ()
) -> dict[str, Array]:
    """Arrays over (not copies of) the bytes after `offset`, where alignment allows; read-only as `data` is.

    Each tensor that one of `specs` names is checked against it. Raises ValueError naming the tensor, its datatype and shape, and what was expected.
    """
    view = memoryview(data)
    stated = sum(head.size for head in heads)
    if len(view) - offset != stated:
        raise ValueError(f"the tensors {', '.join(repr(head.name) for head in heads) or '(none)'} have {stated} bytes, got {len(view) - offset}")
    if len(heads) > limits.tensors_max:
        raise ValueError(f"{len(heads)} tensors, the limit is {limits.tensors_max}")
    expected = {spec.name: spec for spec in specs}
    arrays: dict[str, Array] = {}
    for head in heads:
        if head.name in arrays:
            _refuse(head, "it is given more than once")
        if head.size < 0:
            _refuse(head, f"a size of {head.size} bytes")
        arrays[head.name] = _decoded(view[offset : offset + head.size], head, expected.get(head.name), limits)
        offset += head.size
    return arrays


def _decoded(view: memoryview, head: TensorHead, spec: TensorSpec | None, limits: Limits) -> Array:
    datatype = DATATYPES.get(head.datatype)
    if datatype is None:
        _refuse(head, f"unknown datatype; it is one of {', '.join(DATATYPES)}")
    if len(head.shape) > limits.rank_max or min(head.shape, default=0) < 0:
        _refuse(head, f"expected a shape of at most {limits.rank_max} axes, none of them negative")
    if max(head.shape, default=0) > limits.elements_max or elements_of(head.shape) > limits.elements_max:
        _refuse(head, f"the limit is {limits.elements_max} elements")
    if spec is not None:
        reason = misfit(head.datatype, head.shape, spec)
        if reason:
            _refuse(head, reason)
    try:
        flat = from_raw(view, 0, datatype, elements_of(head.shape))
    except ValueError as error:
        _refuse(head, str(error))
    if datatype is not BYTES and not flat.flags.aligned:
        # Tensors stand one after the other without padding; not every runtime reads floats at odd addresses.
        flat = flat.copy()
        flat.flags.writeable = not view.readonly
    return flat.reshape(head.shape)


def misfit(datatype: str, shape: Sequence[int], spec: TensorSpec) -> str:
    """What a tensor has otherwise than its spec says; empty where it fits."""
    if datatype != spec.datatype:
        return f"expected datatype {spec.datatype}, got {datatype}"
    if len(shape) != len(spec.shape) or any(want not in (-1, got) for want, got in zip(spec.shape, shape, strict=True)):
        return f"expected shape {list(spec.shape)} (-1 is free), got {list(shape)}"
    return ""


def _refuse(head: TensorHead, reason: str) -> NoReturn:
    name = head.name if len(head.name) <= _NAME_CHARACTERS_MAX else head.name[:_NAME_CHARACTERS_MAX] + "..."
    raise ValueError(f"tensor {name!r} (datatype {head.datatype[:16]}, shape {list(head.shape[:9])}): {reason}")
