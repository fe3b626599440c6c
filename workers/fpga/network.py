"""A quantised dense network as FPGA accelerators compute it, exactly: integer weights, 32-bit accumulators, shifts or thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_EXACT = 1 << 53


class Layer(msgspec.Struct, frozen=True, eq=False):
    """One dense layer: accumulators = inputs x weights + bias, and then (where it is not the last) what makes of them the next inputs."""

    weights: Array
    """int8, inputs x outputs."""
    bias: Array
    """int32, one for each output."""
    shift: int = 0
    """Requantisation: accumulators are divided by 2^shift, rounded half to even, and clipped to 0..high."""
    high: int = 255
    thresholds: Array | None = None
    """Instead: one or more int32 for each output (outputs x levels); the next input counts those that an accumulator reaches."""
    flipped: Array | None = None
    """Outputs (bool) whose threshold is reached from above: `accumulator <= threshold`."""
    bipolar: bool = False
    """The count of one threshold, 0 or 1, stands for -1 or 1."""

    @property
    def inputs(self) -> int:
        return int(self.weights.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.weights.shape[1])


class Network(msgspec.Struct, frozen=True, eq=False):
    """Layers one after the other; what comes out are the last layer's accumulators, or the index of the largest."""

    layers: tuple[Layer, ...]
    input_signed: bool = False
    input_threshold: int | None = None
    """Where set, an input is -1 below it and 1 from it on (a binarised first layer)."""
    argmax: bool = False

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return 1 if self.argmax else self.layers[-1].outputs

    def check(self) -> None:
        """Raises ValueError where layers do not follow each other, or an accumulator may overflow 32 bits."""
        if not self.layers:
            raise ValueError("a network has at least one layer")
        reach = 1 if self.input_threshold is not None else 255
        for number, layer in enumerate(self.layers):
            if number and layer.inputs != self.layers[number - 1].outputs:
                raise ValueError(f"layer {number} takes {layer.inputs} inputs, the one before gives {self.layers[number - 1].outputs}")
            if layer.bias.shape != (layer.outputs,):
                raise ValueError(f"layer {number} has {layer.bias.shape} biases for {layer.outputs} outputs")
            largest = np.abs(layer.weights.astype(np.int64)).sum(0) * reach + np.abs(layer.bias.astype(np.int64))
            if int(largest.max()) >= 1 << 31:
                raise ValueError(f"accumulators of layer {number} may overflow 32 bits")
            reach = (layer.thresholds.shape[1] if not layer.bipolar else 1) if layer.thresholds is not None else layer.high

    def run(self, inputs: Array) -> Array:
        """Rows x inputs of integers -> rows x outputs of int32."""
        values = inputs
        if self.input_threshold is not None:
            values = np.where(inputs >= self.input_threshold, 1, -1)
        accumulators = _accumulate(values, self.layers[0])
        for before, layer in zip(self.layers, self.layers[1:], strict=False):
            accumulators = _accumulate(_activate(accumulators, before), layer)
        # Of equal ones the first is the largest, as in the RTL and in ONNX's ArgMax.
        return accumulators.argmax(1).astype(np.int32)[:, None] if self.argmax else accumulators


def _accumulate(values: Array, layer: Layer) -> Array:
    # Floating point runs on the processor's vector units and is exact here: no sum of products comes near what the mantissa holds.
    weights = _floating(layer, values.dtype)
    return (values.astype(weights.dtype) @ weights).astype(np.int32) + layer.bias


@lru_cache(maxsize=64)
def _floating(layer: Layer, inputs: np.dtype[Any]) -> Array:
    """The weights in single precision, where bytes go in and no sum can leave 24 bits; else in double precision."""
    reach = int(np.abs(layer.weights.astype(np.int64)).sum(0).max()) * 255
    return layer.weights.astype(np.float32 if inputs.itemsize == 1 and reach < 1 << 24 else np.float64)


def _activate(accumulators: Array, layer: Layer) -> Array:
    if layer.thresholds is None:
        return np.clip(rounded_shift(accumulators, layer.shift), 0, layer.high)
    wide = accumulators[:, :, None]
    reached = wide >= layer.thresholds[None]
    if layer.flipped is not None:
        reached = np.where(layer.flipped[None, :, None], wide <= layer.thresholds[None], reached)
    counts = reached.sum(2)
    return counts * 2 - 1 if layer.bipolar else counts


def rounded_shift(values: Array, shift: int) -> Array:
    """values / 2^shift, rounded half to even, in integers: what ONNX's Round does and what the RTL does."""
    if shift == 0:
        return values
    wide = values.astype(np.int64)
    floor, rest, half = wide >> shift, wide & ((1 << shift) - 1), 1 << (shift - 1)
    return floor + ((rest > half) | ((rest == half) & ((floor & 1) == 1)))


def macs(network: Network) -> int:
    """Multiplications of one row."""
    return sum(layer.inputs * layer.outputs for layer in network.layers)


def row_cycles(sizes: Sequence[tuple[int, int]], *, folding: int = 1) -> int:
    """Clock cycles between two rows of a pipelined dataflow: the slowest layer takes `folding` cycles for each of its inputs."""
    return max(max(inputs * folding, outputs) for inputs, outputs in sizes)
