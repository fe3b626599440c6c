"""Tensors: each datatype there and back, and each kind of bad tensor refused with its name, datatype and shape."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from schemas.catalog import TensorSpec
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.tensors import DATATYPES, decode_inputs, decode_output, encode_output, encode_tensor
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, OutputTensor

LIMITS = Limits()
IMAGE = (TensorSpec("image", "UINT8", (-1, 1, 2, 2)),)
PROBS = (TensorSpec("probs", "FP32", (-1, 10)),)


def body(*tensors: object, packed: bool = False, **fields: object) -> bytes:
    encode = msgspec.msgpack.encode if packed else msgspec.json.encode
    return encode({"inputs": list(tensors), **fields})


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "image", "shape": [1, 1, 2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]} | changes


def refused(*tensors: object, packed: bool = False, specs=IMAGE, limits: Limits = LIMITS, **fields: object) -> str:
    with pytest.raises(BadRequest) as caught:
        decode_inputs(body(*tensors, packed=packed, **fields), MSGPACK_TYPE if packed else JSON_TYPE, specs, limits, outputs=PROBS)
    return str(caught.value)


SAMPLES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "BYTES": np.array([[b"a", "ü".encode()], [b"", b"longer text"]], dtype=object),
} | {
    name: np.array([[datatype.dtype.type(0), np.iinfo(datatype.dtype).max], [np.iinfo(datatype.dtype).min, 1]], datatype.dtype)
    for name, datatype in DATATYPES.items()
    if datatype.element is int
}
SAMPLES |= {name: np.array([[0.0, -1.5], [0.25, 3e4]], DATATYPES[name].dtype) for name in ("FP16", "FP32", "FP64")}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", list(DATATYPES))
def test_each_datatype_there_and_back(name: str, raw: bool) -> None:
    values = SAMPLES[name]
    encoded = encode_tensor("x", values, raw=raw)
    assert encoded["datatype"] == name
    specs = (TensorSpec("x", name, (-1, 2)),)
    for packed in (True,) if raw else (True, False):
        decoded = decode_inputs(body(encoded, packed=packed), MSGPACK_TYPE if packed else JSON_TYPE, specs, LIMITS)
        assert decoded.rows == 2
        assert decoded.inputs["x"].dtype == DATATYPES[name].dtype
        assert (decoded.inputs["x"] == values).all()
        output = decode_output(encode_output("x", values, raw=raw))
        assert output.dtype == DATATYPES[name].dtype
        assert (output == values).all()


def test_raw_bytes_are_little_endian_and_bytes_have_their_lengths() -> None:
    assert encode_tensor("x", np.array([1], np.dtype(">u4")), raw=True)["data"] == b"\x01\0\0\0"
    assert encode_tensor("x", np.array(["ab", b""], dtype=object), raw=True)["data"] == b"\x02\0\0\0ab\0\0\0\0"
    assert encode_tensor("x", np.array([True, False]), raw=True)["data"] == b"\x01\0"


@pytest.mark.parametrize("packed", [True, False])
def test_data_may_be_flat_or_nested(packed: bool) -> None:
    kind = MSGPACK_TYPE if packed else JSON_TYPE
    flat = decode_inputs(body(tensor(), packed=packed), kind, IMAGE, LIMITS).inputs["image"]
    nested = decode_inputs(body(tensor(data=[[[[1, 2], [3, 4]]]]), packed=packed), kind, IMAGE, LIMITS).inputs["image"]
    assert flat.shape == nested.shape == (1, 1, 2, 2)
    assert (flat == nested).all()


def test_white_space_in_nested_json() -> None:
    text = b'{"inputs": [{"name": "image", "shape": [1, 1, 2, 2], "datatype": "UINT8", "data": \n[ [ [ [1, 2], [3, 4] ] ] ] }]}'
    assert decode_inputs(text, JSON_TYPE, IMAGE, LIMITS).inputs["image"].ravel().tolist() == [1, 2, 3, 4]


def test_parameters_and_outputs_asked_for() -> None:
    decoded = decode_inputs(body(tensor(), outputs=[{"name": "probs"}], parameters={"top": 3}), JSON_TYPE, IMAGE, LIMITS, outputs=PROBS)
    assert decoded.outputs == ["probs"]
    assert decoded.parameters == {"top": 3}
    assert decode_inputs(body(tensor()), JSON_TYPE, IMAGE, LIMITS, outputs=PROBS).outputs is None
    message = refused(tensor(), outputs=[{"name": "prob"}])
    assert "unknown output 'prob', did you mean 'probs'?" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": [1, 1, 2, -2]}, "negative"),
        ({"shape": [1, 1, 2, 3]}, "expected shape [-1, 1, 2, 2]"),
        ({"shape": [1, 4]}, "expected shape [-1, 1, 2, 2]"),
        ({"shape": []}, "expected a shape of 1 to 8 axes"),
        ({"shape": [1] * 9}, "got 9"),
        ({"shape": [0, 1, 2, 2], "data": []}, "got 0"),
        ({"shape": [2, 1, 2, 2]}, "expected 8 elements, got 4"),
        ({"data": [1, 2, 3]}, "expected 4 elements, got 3"),
        ({"data": [1, 2, 3, 300]}, "element 3 is 300, UINT8 holds 0..255"),
        ({"data": [1, 2, 3, -1]}, "element 3 is -1"),
        ({"data": [1, 2, 3, 1.5]}, "got `float` - at `data[3]`"),
        ({"data": [1, 2, 3, True]}, "got `bool`"),
        ({"data": [1, 2, 3, "4"]}, "got `str`"),
        ({"data": "1234"}, ""),
        ({"data": None}, ""),
        ({"data": [[[[1, 2], [3]]]]}, "along axis 3"),
        ({"data": [[[[1, 2]], [[3, 4]]]]}, "along axis 1"),
        ({"data": [[[[1, 2], [3, 4]]], [[[1, 2], [3, 4]]]]}, "along axis 0"),
        ({"data": [[1, 2], [3, 4]]}, "Expected `array`"),
        ({"data": [[[[[1, 2], [3, 4]]]]]}, "got `array`"),
        ({"datatype": "INT8"}, "expected datatype UINT8, got INT8"),
        ({"datatype": "uint8"}, "did you mean 'UINT8'?"),
        ({"datatype": ""}, "unknown `datatype`"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_bad_tensor_is_refused_by_name_datatype_and_shape(changes: dict[str, object], said: str, packed: bool) -> None:
    message = refused(tensor(**changes), packed=packed)
    assert message.startswith("input 'image' (datatype ")
    assert "shape [" in message
    assert said in message


@pytest.mark.parametrize("field", ["datatype", "shape", "data", "name"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_missing_field_is_named(field: str, packed: bool) -> None:
    assert f"`{field}`" in refused({key: value for key, value in tensor().items() if key != field}, packed=packed)


@pytest.mark.parametrize(
    ("data", "datatype", "said"),
    [
        (b"123", "UINT8", "expected 4 bytes (4 x 1), got 3"),
        (b"12345", "UINT8", "got 5"),
        (b"", "UINT8", "got 0"),
        (b"\0\1\2\0", "BOOL", "element 2 is neither 0 nor 1"),
        (b"\0" * 15, "INT32", "expected 16 bytes"),
        (b"\0" * 15, "BYTES", "a 4-byte length before each"),
        (b"\0" * 17, "BYTES", "1 bytes are left over"),
        (b"\xff" * 16, "BYTES", "element 0 of 4 does not fit"),
        (b"\x04\0\0\0" + b"\0" * 13, "BYTES", "element 3 of 4 does not fit"),
    ],
)
def test_raw_bytes_must_fit(data: bytes, datatype: str, said: str) -> None:
    specs = (TensorSpec("image", datatype, (-1, 1, 2, 2)),)
    assert said in refused(tensor(data=data, datatype=datatype), packed=True, specs=specs)


def test_names_and_number_of_tensors() -> None:
    two = (*IMAGE, TensorSpec("mask", "BOOL", (-1, 2)))
    mask = {"name": "mask", "shape": [1, 2], "datatype": "BOOL", "data": [True, False]}
    assert decode_inputs(body(tensor(), mask), JSON_TYPE, two, LIMITS).rows == 1
    assert "no `inputs`" in refused()
    assert "unknown input 'imag', did you mean 'image'?" in refused(tensor(name="imag"))
    assert "input 'mask' is missing" in refused(tensor(), specs=two)
    assert "unknown input 'mask'" in refused(tensor(), mask)
    assert "'image' is given more than once" in refused(tensor(), tensor())
    assert "expected 1 rows (first axis) as in input 'image', got 2" in refused(tensor(), mask | {"shape": [2, 2]}, specs=two)
    assert "65 input tensors, the limit is 64" in refused(*[tensor(name=f"t{i}") for i in range(65)])


def test_floats_beyond_the_datatype_and_not_numbers() -> None:
    specs = (TensorSpec("x", "FP16", (-1,)),)
    assert "element 1 is 70000.0, FP16 holds at most" in refused({"name": "x", "shape": [2], "datatype": "FP16", "data": [1, 7e4]}, specs=specs)
    text = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP16","data":[NaN]}]}'
    with pytest.raises(BadRequest):
        decode_inputs(text, JSON_TYPE, specs, LIMITS)
    packed = body({"name": "x", "shape": [1], "datatype": "FP16", "data": [float("nan")]}, packed=True)
    assert np.isnan(decode_inputs(packed, MSGPACK_TYPE, specs, LIMITS).inputs["x"]).all()


def test_limits_hold_before_anything_is_allocated() -> None:
    kind = JSON_TYPE
    small = Limits(payload_bytes_max=20)
    with pytest.raises(TooLarge, match="the limit is 20"):
        decode_inputs(body(tensor()), kind, IMAGE, small)
    for shape in ([1 << 62, 1 << 62], [3, 1 << 24], [10**4000] * 8, [0, 1 << 40]):
        with pytest.raises(TooLarge, match="elements"):
            decode_inputs(body(tensor(shape=shape)), kind, (), LIMITS)
    with pytest.raises(BadRequest, match="expected 1 to 1024 rows"):
        decode_inputs(body(tensor(shape=[1025], data=[0] * 1025)), kind, (), LIMITS)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"inputs": 1}', b'{"inputs": [1]}', b'{"inputs": ' + b"[" * 200_000, b'{"x": "\xff"}', b"\xc1"]
)
@pytest.mark.parametrize("kind", [JSON_TYPE, MSGPACK_TYPE])
def test_a_body_that_is_no_request(text: bytes, kind: str) -> None:
    with pytest.raises(BadRequest):
        decode_inputs(text, kind, IMAGE, LIMITS)


def test_a_large_mistake_gets_a_small_answer() -> None:
    assert len(refused(tensor(name="n" * 100_000))) < 500
    assert len(refused(tensor(shape=[1] * 100_000))) < 500
    assert len(refused(tensor(datatype="D" * 100_000))) < 500
    assert len(refused(tensor(data=[10**4000, 1, 1, 1]))) < 500


def test_every_tensor_is_taken_without_specs() -> None:
    decoded = decode_inputs(body(tensor(name="any")), JSON_TYPE, (), LIMITS)
    assert list(decoded.inputs) == ["any"]


def test_outputs_that_cannot_be_carried() -> None:
    with pytest.raises(BadRequest, match="complex128"):
        encode_output("x", np.array([1j]), raw=True)
    with pytest.raises(BadRequest, match="not UTF-8"):
        encode_output("x", np.array([b"\xff"], dtype=object), raw=False)
    with pytest.raises(BadRequest, match="not int"):
        encode_output("x", np.array([1], dtype=object), raw=False)
    for bad in (
        OutputTensor("x", [2], "FP32", [1.0]),
        OutputTensor("x", [2], "FP32", b"1"),
        OutputTensor("x", [1], "FP8", [1]),
        OutputTensor("x", [1], "UINT8", [None]),
    ):
        with pytest.raises(BadRequest, match="output 'x'"):
            decode_output(bad)


def test_a_null_in_an_output_is_nan() -> None:
    text = msgspec.json.encode(encode_output("x", np.array([np.nan, 1.0], np.float32), raw=False))
    values = decode_output(msgspec.json.decode(text, type=OutputTensor))
    assert np.isnan(values[0])
    assert values[1] == 1.0
