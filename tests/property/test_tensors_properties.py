"""Tensors: whatever is encoded decodes to the same, and whatever bytes come in, the only answers are arrays, BadRequest and TooLarge."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.catalog import TensorSpec
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.tensors import DATATYPES, decode_inputs, encode_tensor
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE

LIMITS = Limits(elements_max=1 << 12, rows_max=64)
NUMERIC = [datatype.dtype for datatype in DATATYPES.values() if datatype.name != "BYTES"]
SHAPES = arrays.array_shapes(min_dims=1, max_dims=5, max_side=4)


def _elements(dtype: np.dtype) -> st.SearchStrategy[object] | None:
    return st.floats(width=dtype.itemsize * 8, allow_nan=False, allow_infinity=False) if dtype.kind == "f" else None


numeric = st.sampled_from(NUMERIC).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES, elements=_elements(dtype)))
texts = SHAPES.flatmap(lambda shape: arrays.arrays(object, shape, elements=st.text().map(str.encode), fill=st.just(b"")))


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text drawn builds Hypothesis' table of characters
@given(values=numeric | texts, raw=st.booleans(), packed=st.booleans(), nested=st.booleans())
def test_there_and_back(values, raw: bool, packed: bool, nested: bool) -> None:
    encoded = encode_tensor("x", values, raw=raw and packed)
    if nested and not (raw and packed):
        encoded["data"] = np.array(encoded["data"], dtype=object).reshape(values.shape).tolist()
    encode = msgspec.msgpack.encode if packed else msgspec.json.encode
    specs = (TensorSpec("x", str(encoded["datatype"]), (-1, *values.shape[1:])),)
    decoded = decode_inputs(encode({"inputs": [encoded]}), MSGPACK_TYPE if packed else JSON_TYPE, specs, LIMITS)
    assert decoded.inputs["x"].shape == values.shape
    assert decoded.inputs["x"].dtype == values.dtype
    assert (decoded.inputs["x"] == values).all()


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=4) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)
wild = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | anything,
        "shape": st.lists(st.integers(-2, 5) | st.integers(), max_size=9) | anything,
        "datatype": st.sampled_from(list(DATATYPES)) | anything,
        "data": anything | st.binary(max_size=40),
    },
)


@given(tensors=st.lists(wild, max_size=3), packed=st.booleans(), declared=st.booleans(), cut=st.integers(0, 40))
def test_wild_tensors_get_a_typed_answer(tensors, packed: bool, declared: bool, cut: int) -> None:
    try:
        body = (msgspec.msgpack.encode if packed else msgspec.json.encode)({"inputs": tensors})
    except OverflowError:
        return
    specs = (TensorSpec("x", "INT32", (-1, 2)),) if declared else ()
    for text in (body, body[: max(len(body) - cut, 0)]):
        with contextlib.suppress(BadRequest, TooLarge):
            decoded = decode_inputs(text, MSGPACK_TYPE if packed else JSON_TYPE, specs, LIMITS)
            assert {values.shape[0] for values in decoded.inputs.values()} == {decoded.rows}


@given(text=st.binary(max_size=200), packed=st.booleans())
def test_noise_gets_a_typed_answer(text: bytes, packed: bool) -> None:
    with contextlib.suppress(BadRequest, TooLarge):
        decode_inputs(text, MSGPACK_TYPE if packed else JSON_TYPE, (), LIMITS)
