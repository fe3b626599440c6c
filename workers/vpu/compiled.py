"""One model compiled by OpenVINO for one batch size, run through an AsyncInferQueue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from schemas.catalog import VariantSpec
from schemas.errors import ModelRefused

_JOBS = 1
"""A backend runs one batch at a time: a second job would only hold memory."""


class CompiledBatch:
    """A statically shaped model for exactly `rows` rows."""

    def __init__(
        self, core: openvino.Core, network: openvino.Model, device: str, settings: Mapping[str, Any], *, spec: VariantSpec, rows: int
    ) -> None:
        """Raises RuntimeError where OpenVINO cannot compile, ModelRefused where it chose another device."""
        network.reshape({tensor.name: openvino.PartialShape([rows, *tensor.shape[1:]]) for tensor in spec.inputs})
        self._compiled = core.compile_model(network, device, dict(settings))
        self.execution_devices = [str(name) for name in self._compiled.get_property("EXECUTION_DEVICES")]
        if any(name.partition(".")[0] != device.partition(".")[0] for name in self.execution_devices):
            raise ModelRefused(f"{spec.name}: OpenVINO would compute on {', '.join(self.execution_devices)} instead of {device}")
        names = {name: index for index, output in enumerate(self._compiled.outputs) for name in output.get_names()}
        self._outputs = [(tensor.name, names[tensor.name]) for tensor in spec.outputs]
        self._queue = openvino.AsyncInferQueue(self._compiled, _JOBS)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One batch; the outputs are copies, because OpenVINO writes the next batch into the same memory."""
        try:
            self._queue.start_async(dict(feeds))
            self._queue.wait_all()
        except RuntimeError:
            # A job that failed to start may never come back to its queue.
            self._queue = openvino.AsyncInferQueue(self._compiled, _JOBS)
            raise
        request = self._queue[0]
        return {name: np.array(request.get_output_tensor(index).data) for name, index in self._outputs}
