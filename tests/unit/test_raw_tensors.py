"""Raw tensors between stages: what goes in comes out, and what does not fit its head is refused before an array exists."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.catalog import TensorSpec
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.raw_tensors import decode_raw, encode_raw
from schemas.stage import TensorHead
from schemas.tensors import decode_selected, encode_tensor
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE

LIMITS = Limits()
TENSORS = {
    "flags": np.array([True, False, True]),
    "boxes": np.arange(8, dtype=np.float32).reshape(2, 4),
    "half": np.array([[0.5]], np.float16),
    "texts": np.array([[b"a", b""], ["grün".encode(), b"\xff"]], dtype=object),
    "none": np.zeros((0, 4), np.int64),
    "one": np.array(7, np.uint16),
}


@pytest.mark.parametrize("prefix", [b"", b"{}", b"odd"])
def test_tensors_come_back_as_they_were(prefix: bytes) -> None:
    heads, parts = encode_raw(TENSORS)
    data = prefix + b"".join(parts)
    found = decode_raw(data, len(prefix), heads, LIMITS)
    assert list(found) == list(TENSORS)
    for name, array in found.items():
        assert (array.dtype, array.shape, array.tolist()) == (TENSORS[name].dtype, TENSORS[name].shape, TENSORS[name].tolist())
        assert array.flags.aligned
        assert name == "texts" or not array.flags.writeable


def test_an_aligned_tensor_is_a_view_and_big_endian_is_turned() -> None:
    heads, parts = encode_raw({"x": np.arange(4, dtype=">f4")})
    data = bytes(parts[0])
    found = decode_raw(data, 0, heads, LIMITS)["x"]
    assert found.tolist() == [0, 1, 2, 3]
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


def head(**change: Any) -> TensorHead:
    return TensorHead(**{"name": "x", "datatype": "FP32", "shape": (2, 3), "size": 24} | change)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([head(datatype="FP31")], r"tensor 'x' \(datatype FP31, shape \[2, 3\]\): unknown datatype; it is one of BOOL"),
        ([head(shape=(2, -3))], "none of them negative"),
        ([head(shape=(1,) * 9)], "at most 8 axes"),
        ([head(shape=(1 << 40, 0))], "the limit is 16777216 elements"),
        ([head(shape=(2, 2))], "expected 16 bytes"),
        ([head(size=20)], "the tensors 'x' have 20 bytes, got 24"),
        ([head(size=12, shape=(3,)), head(size=12, shape=(3,))], "given more than once"),
        ([head(name="y", size=-24), head(size=48, shape=(12,))], "a size of -24 bytes"),
        ([head(datatype="BYTES", shape=(1,))], "element 0 of 1 does not fit|left over"),
        ([head(datatype="BOOL", shape=(24,))], "neither 0 nor 1"),
        ([head(name=f"t{number}", size=0, shape=(0,)) for number in range(64)] + [head()], "65 tensors, the limit is 64"),
        ([head(name="y" * 500, datatype="FP64")], "tensor 'y{64}\\.\\.\\.' "),
    ],
)
def test_what_does_not_fit_is_refused(heads: list[TensorHead], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_raw(b"\x07" * 24, 0, heads, LIMITS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("x", "FP64", (-1, 3)), "expected datatype FP64, got FP32"),
        (TensorSpec("x", "FP32", (-1, 4)), r"expected shape \[-1, 4\] \(-1 is free\), got \[2, 3\]"),
        (TensorSpec("x", "FP32", (-1,)), r"expected shape \[-1\]"),
    ],
)
def test_a_spec_is_kept(spec: TensorSpec, message: str) -> None:
    heads, parts = encode_raw({"x": np.zeros((2, 3), np.float32)})
    assert decode_raw(parts[0], 0, heads, LIMITS, specs=[TensorSpec("x", "FP32", (-1, 3))])["x"].shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        decode_raw(parts[0], 0, heads, LIMITS, specs=[spec])


def test_what_has_no_datatype_is_named() -> None:
    with pytest.raises(ValueError, match="tensor 'z': numpy complex128 has no"):
        encode_raw({"z": np.zeros(2, np.complex128)})
    with pytest.raises(ValueError, match="tensor 'z': a BYTES tensor holds bytes or text, not int"):
        encode_raw({"z": np.array([1, None], dtype=object)})


# --- the tensors of a request that a stage takes ---

X = TensorSpec("x", "FP32", (-1, 2))


def body(*tensors: dict[str, Any], packed: bool, **fields: Any) -> bytes:
    content = {"inputs": list(tensors), **fields}
    return msgspec.msgpack.encode(content) if packed else msgspec.json.encode(content)


@pytest.mark.parametrize("packed", [False, True])
def test_only_what_a_stage_takes_is_decoded(packed: bool) -> None:
    kind = MSGPACK_TYPE if packed else JSON_TYPE
    photo = encode_tensor("photo", np.array([[1.0, 2.0]], np.float32), raw=packed)
    unread = {"name": "unread", "datatype": "FP32", "shape": [1 << 40], "data": 5}
    found, parameters = decode_selected(
        body(photo, unread, packed=packed, parameters={"top": 3}), kind, {"x": "photo", "again": "photo"}, [X], LIMITS
    )
    assert {name: array.tolist() for name, array in found.items()} == {"x": [[1, 2]], "again": [[1, 2]]}
    assert parameters == {"top": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "phot"}, r"input 'photo' is missing, did you mean 'phot'\?; the request has 'phot'"),
        ({"datatype": "FP64"}, r"input 'photo' \(datatype FP64, shape \[1, 2\]\): expected datatype FP32"),
        ({"shape": [2, 1]}, r"expected shape \[-1, 2\]"),
        ({"data": [1.0]}, "expected 2 elements, got 1"),
        ({"data": ["a", "b"]}, "Expected `float`"),
    ],
)
def test_the_checks_are_those_of_a_whole_request(changes: dict[str, Any], message: str) -> None:
    tensor = {"name": "photo", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    with pytest.raises(BadRequest, match=message):
        decode_selected(body(tensor | changes, packed=False), JSON_TYPE, {"x": "photo"}, [X], LIMITS)


def test_a_body_that_is_none_or_too_large() -> None:
    for text in (b"", b"{", b"[]"):
        with pytest.raises(BadRequest):
            decode_selected(text, JSON_TYPE, {"x": "photo"}, [X], LIMITS)
    with pytest.raises(TooLarge, match="the limit is 10"):
        decode_selected(b" " * 11, JSON_TYPE, {}, [], msgspec.structs.replace(LIMITS, payload_bytes_max=10))
