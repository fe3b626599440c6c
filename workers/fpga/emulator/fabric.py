"""What computes on an emulated board: a fabric takes packed rows and gives packed rows, and says how many clock cycles that took."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workers.fpga.design import Design, StreamSpec
from workers.fpga.network import Layer, Network
from workers.fpga.packing import Packing, quantized_type

Bytes = NDArray[np.uint8]
NUMPY, RTL = "numpy", "rtl"


class Fabric(Protocol):
    """A configured accelerator."""

    def run(self, data: Bytes, rows: int) -> tuple[Bytes, int]:
        """Rows x bytes in, rows x bytes out, and the clock cycles."""
        ...

    def set_weights(self, words: NDArray[np.uint32]) -> None:
        """Runtime-writable weights, as they lie in the registers."""
        ...

    def close(self) -> None: ...


def stream_packing(stream: StreamSpec) -> Packing:
    """How rows of this stream are packed."""
    return Packing(quantized_type(stream.datatype), (stream.elements,), stream.inner)


class NumpyFabric:
    """The network, computed exactly; cycles from the folding, as a pipelined dataflow has them."""

    def __init__(self, design: Design, network: Network) -> None:
        self._network, self._folding = network, design.folding
        self._source, self._sink = stream_packing(design.source), stream_packing(design.sink)

    def run(self, data: Bytes, rows: int) -> tuple[Bytes, int]:
        values = self._network.run(self._source.unpack(data))
        out = np.zeros((rows, self._sink.row_bytes), np.uint8)
        self._sink.pack(values, out)
        return out, network_cycles(self._network, rows, self._folding)

    def set_weights(self, words: NDArray[np.uint32]) -> None:
        last = self._network.layers[-1]
        count = last.weights.size
        weights = words.astype("<u4").view(np.int8)[:count].reshape(last.outputs, last.inputs).T
        layers = (*self._network.layers[:-1], Layer(weights.copy(), last.bias))
        self._network = Network(layers, self._network.input_signed, self._network.input_threshold, self._network.argmax)

    def close(self) -> None:
        """Nothing is held."""


@lru_cache(maxsize=256)
def network_cycles(network: Network, rows: int, folding: int = 1) -> int:
    """Clock cycles of a batch in a pipeline: layers work at the same time on different rows, each takes `folding` cycles for an input.

    The same that workers/fpga/rtl counts; a test compares the two.
    """
    last = len(network.layers) - 1
    finished = [0] * len(network.layers)
    drained = 0
    for _ in range(rows):
        before = finished[0]
        for number, layer in enumerate(network.layers):
            # A layer keeps one finished row: the next one waits until the layer behind has taken that.
            room = drained if number == last else finished[number + 1]
            finished[number] = before = max(before + layer.inputs * folding, room)
        drained = before + network.layers[last].outputs
    # One more to start, and one for the choice of the largest.
    return drained + 1 + int(network.argmax)
