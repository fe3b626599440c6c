# onnxruntime ships no types for its quantiser.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
"""Makes the int8 form of a network: static quantisation by ONNX Runtime's own tool, with ranges seen on calibrating photos."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

OPERATIONS = ["Conv", "Add", "Gemm", "GlobalAveragePool", "Clip"]


class _Photos(CalibrationDataReader):
    """One photo a call."""

    def __init__(self, photos: Sequence[NDArray[np.uint8]]) -> None:
        self._photos = iter(photos)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        photo = next(self._photos, None)
        return None if photo is None else {"image": photo[None]}


def quantised(network: bytes, photos: Sequence[NDArray[np.uint8]]) -> bytes:
    """The same inputs and outputs; weights by channel in int8, activations in uint8."""
    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        plain, prepared, made = folder / "plain.onnx", folder / "prepared.onnx", folder / "int8.onnx"
        plain.write_bytes(network)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(made),
            _Photos(photos),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=OPERATIONS,
        )
        return made.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """The tool warns, by the root logger, of what was done above."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
