"""The example's dense network in numpy, read from its ONNX file: its answers, and the exact gradient of its loss by the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]


class DenseNetwork:
    """probs = softmax(W2 relu(W1 x + b1) + b2), with x = (pixels - mean) * scale, flattened."""

    def __init__(self, file: Path | str) -> None:
        """Raises ValueError for a model that is built otherwise (`mlp128.onnx` is built so)."""
        graph = onnx.load(file).graph
        weights = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}
        kinds = [node.op_type for node in graph.node]
        if kinds != ["Cast", "Sub", "Mul", "Flatten", "Gemm", "Relu", "Gemm", "Softmax"]:
            raise ValueError(f"{file}: a network of {kinds} is not one dense layer, relu, another dense layer: take mlp128.onnx")
        if any(attribute.name in ("transA", "transB", "alpha", "beta") for node in graph.node for attribute in node.attribute):
            raise ValueError(f"{file}: its dense layers are scaled or transposed: take mlp128.onnx")
        operands = [node.input[1:] for node in graph.node if node.op_type in ("Sub", "Mul", "Gemm")]
        (mean,), (scale,), first, second = operands
        self._mean, self._scale = float(weights[mean]), float(weights[scale])
        self._first, self._first_bias = (weights[name] for name in first)
        self._second, self._second_bias = (weights[name] for name in second)

    def _hidden(self, pixels: Array) -> tuple[Array, Array]:
        flat = (np.asarray(pixels, np.float64).reshape(len(pixels), -1) - self._mean) * self._scale
        before = flat @ self._first + self._first_bias
        return before, np.maximum(before, 0.0)

    def logits(self, pixels: Array) -> Array:
        """[n, classes] of pixels [n, ...] in 0..255."""
        return self._hidden(pixels)[1] @ self._second + self._second_bias

    def probabilities(self, pixels: Array) -> Array:
        """Softmax of the logits."""
        logits = self.logits(pixels)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    def losses(self, pixels: Array, labels: Array) -> Array:
        """Cross-entropy of each row."""
        return -np.log(np.maximum(self.probabilities(pixels)[np.arange(len(labels)), labels], 1e-300))

    def gradient(self, pixels: Array, labels: Array) -> Array:
        """Of each row's cross-entropy by its pixels, in the shape of the pixels: back through softmax, dense, relu, dense, scaling."""
        before, _ = self._hidden(pixels)
        at_logits = self.probabilities(pixels)
        at_logits[np.arange(len(labels)), labels] -= 1.0
        at_hidden = (at_logits @ self._second.T) * (before > 0.0)
        return ((at_hidden @ self._first.T) * self._scale).reshape(np.shape(pixels))


def fgsm(network: DenseNetwork, images: NDArray[np.uint8], labels: Array, strength: float) -> NDArray[np.uint8]:
    """Images one step of `strength` (of 255) up their loss's sign gradient: Goodfellow, Shlens, Szegedy 2015 (ICLR), equation in section 4."""
    step = strength * np.sign(network.gradient(images, labels))
    return np.clip(np.round(images + step), 0, 255).astype(np.uint8)
