"""Packing for FPGA boards: against bytes worked out by hand, against a slow reference bit by bit, and back again for every datatype and shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.fpga.packing import Packing, quantized_type

NAMES = ["BIPOLAR", "BINARY", "TERNARY", *(f"INT{n}" for n in (*range(1, 18), 21, 24, 31, 32, 33, 48, 63, 64))]
NAMES += [f"UINT{n}" for n in (*range(1, 18), 24, 31, 32, 33, 48, 63, 64)]


def packed(name, values, inner):
    values = np.array(values)
    packing = Packing(quantized_type(name), values.shape[1:], inner)
    out = np.full((values.shape[0], packing.row_bytes), 0xAA, np.uint8)
    packing.pack(values, out)
    return packing, out


@pytest.mark.parametrize(
    ("name", "row", "inner", "expected"),
    [
        ("BINARY", [1, 1, 1, 0], 4, "07"),
        ("BIPOLAR", [1, 1, 1, -1], 4, "07"),
        ("BIPOLAR", [-1, 1, -1, 1, 1, 1, 1, 1, 1], 9, "fa01"),
        ("TERNARY", [0, -1, 1, -1], 4, "dc"),
        ("INT2", [-2, 1, -1, 0], 2, "0603"),
        ("UINT4", [15, 1], 2, "1f"),
        ("UINT4", [15, 1], 1, "0f01"),
        ("INT4", [-8, 7, -1], 3, "780f"),
        ("UINT8", [1, 2, 255], 3, "0102ff"),
        ("INT16", [-2, 258], 2, "feff0201"),
        ("INT17", [-1, 1], 1, "ffff01010000"),
        ("INT32", [-2], 1, "feffffff"),
        ("UINT12", [0xABC, 0x123], 2, "bc3a12"),
    ],
)
def test_known_bytes(name, row, inner, expected):
    assert packed(name, [row], inner)[1].tobytes().hex() == expected


def reference(name, values, inner):
    """Slowly: integers, shifted."""
    datatype = quantized_type(name)
    result = bytearray()
    for row in values.reshape(values.shape[0], -1).tolist():
        for at in range(0, len(row), inner):
            codes = [(value + 1) // 2 if name == "BIPOLAR" else value & ((1 << datatype.bits) - 1) for value in row[at : at + inner]]
            whole = sum(code << (datatype.bits * place) for place, code in enumerate(codes))
            result += whole.to_bytes((inner * datatype.bits + 7) // 8, "little")
    return bytes(result)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_every_datatype_there_and_back(data):
    name = data.draw(st.sampled_from(NAMES))
    datatype = quantized_type(name)
    inner, groups, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    element = st.sampled_from([-1, 1]) if name == "BIPOLAR" else st.integers(datatype.low, datatype.high)
    count = rows * groups * inner
    flat = data.draw(st.lists(element, min_size=count, max_size=count))
    values = np.array(flat, datatype.container).reshape(rows, groups, inner)
    packing, out = packed(name, values, inner)
    assert out.tobytes() == reference(name, values, inner)
    back = packing.unpack(out)
    assert back.dtype == datatype.container
    assert np.array_equal(back, values)
    assert not np.shares_memory(back, out)


def test_what_does_not_fit_is_named():
    for name, row, words in (
        ("INT4", [8], "INT4 is -8..7"),
        ("UINT8", [256], "UINT8 is 0..255"),
        ("BIPOLAR", [0], "BIPOLAR is -1 or 1"),
        ("UINT8", [-1], "it holds -1"),
        ("INT8", [0.5], "no integer"),
    ):
        with pytest.raises(ValueError, match=words):
            packed(name, [row], 1)


def test_a_folding_that_does_not_divide_and_unknown_datatypes_are_refused():
    with pytest.raises(ValueError, match="does not fold into groups of 3"):
        Packing(quantized_type("INT8"), (10,), 3)
    for name in ("FLOAT32", "INT0", "INT65", "int8", "FIXED<8,4>", ""):
        with pytest.raises(ValueError, match="cannot be packed"):
            quantized_type(name)


def test_another_integer_whose_values_fit_is_packed():
    assert packed("UINT8", np.array([[1, 2]], np.int64), 2)[1].tobytes() == b"\x01\x02"
    assert packed("INT32", np.array([[1, -1]], np.int64), 2)[1].tobytes().hex() == "01000000ffffffff"
