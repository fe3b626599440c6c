"""What the bitfile of an emulated board holds: a network and how it is wired up; `headrace fpga package` makes it, the emulator reads it."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.fpga.network import Layer, Network

MAGIC = b"HEADRACE EMULATED FABRIC\0"
BYTES_MAX = 256 << 20
AXI_DMA, FINN_IODMA = "axi-dma", "finn-iodma"
FLOWS = (AXI_DMA, FINN_IODMA)
_LENGTH = struct.Struct("<I")


class StreamSpec(msgspec.Struct, frozen=True):
    """One side of the accelerator: qonnx datatype, elements of a row, and the innermost folded axis."""

    datatype: str
    elements: int
    inner: int


class IpAddress(msgspec.Struct, frozen=True):
    """Where an IP's registers are on the bus."""

    name: str
    base: int
    size: int


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """The wiring: which IPs at which addresses, and what the streams carry."""

    flow: str
    part: str
    source: StreamSpec
    sink: StreamSpec
    ips: dict[str, IpAddress]
    """By role: `dma` and `accelerator`, or `idma`, `odma` and `weights`."""
    clock_mhz: float = 100.0
    folding: int = 1
    """Clock cycles that a layer takes for one input element."""
    weights_words: int = 0
    """Runtime-writable words: the last layer's int8 weights, four to a word; 0: the weights are in the bitfile."""


class _Stored(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]


class _Head(msgspec.Struct, frozen=True):
    design: Design
    network: dict[str, Any]
    arrays: list[_Stored]


class _LayerHead(msgspec.Struct, frozen=True):
    shift: int
    high: int
    bipolar: bool
    thresholds: bool
    flipped: bool


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Head).decode


def encode_design(design: Design, network: Network) -> bytes:
    """The payload of a bitfile."""
    arrays: list[NDArray[Any]] = []
    heads: list[_LayerHead] = []
    for layer in network.layers:
        arrays += [layer.weights.astype("<i1"), layer.bias.astype("<i4")]
        if layer.thresholds is not None:
            arrays.append(layer.thresholds.astype("<i4"))
        if layer.flipped is not None:
            arrays.append(layer.flipped.astype("?"))
        heads.append(_LayerHead(layer.shift, layer.high, layer.bipolar, layer.thresholds is not None, layer.flipped is not None))
    stated = {
        "layers": heads,
        "input_signed": network.input_signed,
        "input_threshold": network.input_threshold,
        "argmax": network.argmax,
    }
    head = _encode(_Head(design, stated, [_Stored(array.dtype.str, array.shape) for array in arrays]))
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return MAGIC + _LENGTH.pack(len(head)) + head + data


def decode_design(payload: bytes) -> tuple[Design, Network]:
    """Raises ValueError for anything else than what encode_design wrote."""
    if not payload.startswith(MAGIC):
        raise ValueError("the bitfile was not made for an emulated board")
    at = len(MAGIC) + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack_from(payload, len(MAGIC))
        head = _decode(payload[at : at + length])
        arrays = _read_arrays(head.arrays, payload, at + length)
        network = _network(head.network, iter(arrays))
        network.check()
    except (msgspec.DecodeError, struct.error, TypeError, KeyError, StopIteration, IndexError) as error:
        raise ValueError(f"the bitfile is damaged: {error}") from None
    return head.design, network


def _read_arrays(stored: list[_Stored], payload: bytes, at: int) -> list[NDArray[Any]]:
    arrays: list[NDArray[Any]] = []
    for one in stored:
        dtype = np.dtype(one.dtype)
        count = int(np.prod(one.shape, dtype=np.int64))
        if dtype.hasobject or min(one.shape, default=0) < 0 or at + count * dtype.itemsize > min(len(payload), BYTES_MAX):
            raise ValueError("the bitfile is damaged: it is shorter than it says")
        arrays.append(np.frombuffer(payload, dtype, count, at).reshape(one.shape))
        at += count * dtype.itemsize
    return arrays


def _network(stated: dict[str, Any], arrays: Any) -> Network:
    layers: list[Layer] = []
    for head in msgspec.convert(stated["layers"], list[_LayerHead]):
        weights, bias = next(arrays), next(arrays)
        thresholds = next(arrays) if head.thresholds else None
        flipped = next(arrays) if head.flipped else None
        layers.append(Layer(weights, bias, head.shift, head.high, thresholds, flipped, head.bipolar))
    threshold = stated["input_threshold"]
    return Network(tuple(layers), bool(stated["input_signed"]), None if threshold is None else int(threshold), bool(stated["argmax"]))
