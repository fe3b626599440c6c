# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# (onnxruntime carries no types)
"""ONNX Runtime sessions, as the CPU and the GPU backend both use them: settings, errors, feeding and fetching.

Measured on this runtime: the memory arena and memory patterns bring nothing to convolutional and dense models, never shrink,
and keep a plan for every shape seen. Both are off, so that a session holds its weights and what one batch needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import ModelRefused
from workers.backend import Tensors
from workers.feeds import Feeds, to_bytes, to_text

CPU_PROVIDER = "CPUExecutionProvider"
Provider = tuple[str, Mapping[str, str]]
"""An execution provider's name and its options."""
_LOG_ERRORS_ONLY = 3


def runtime_name() -> str:
    """Runtime and version, for telemetry."""
    return f"onnxruntime {onnxruntime.__version__}"


def available_providers() -> list[str]:
    """What this build of ONNX Runtime was compiled with; whether the device is there is another question."""
    return list(onnxruntime.get_available_providers())


class OnnxRuntimeSession:
    """One loaded model. Call it from one thread at a time; the interpreter lock is released while it computes."""

    def __init__(self, data: bytes, spec: VariantSpec, *, threads: int, providers: Sequence[Provider] = ((CPU_PROVIDER, {}),)) -> None:
        """Raises ModelRefused where ONNX Runtime cannot load the model."""
        self._feeds = Feeds(spec)
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._texts = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.datatype == "BYTES"}
        onnxruntime.disable_telemetry_events()
        try:
            self._session = onnxruntime.InferenceSession(
                data,
                _session_options(threads),
                providers=[name for name, _ in providers],
                provider_options=[dict(options) for _, options in providers],
            )
        except Exception as error:  # ONNX Runtime's errors have no common base but Exception
            raise ModelRefused(f"{spec.name}: ONNX Runtime cannot load the model: {error}") from error

    @property
    def providers(self) -> list[str]:
        """The execution providers that the session really got, first choice first."""
        return list(self._session.get_providers())

    def run(self, inputs: Tensors, rows: int) -> dict[str, NDArray[Any]]:
        """One batch, from host memory to host memory."""
        feeds = self._feeds.take(inputs, rows)
        if not self._texts:
            return self._results(feeds)
        for name in self._texts & feeds.keys():
            feeds[name] = to_text(feeds[name])
        return {name: to_bytes(array) if name in self._texts else array for name, array in self._results(feeds).items()}

    def _results(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results: Any = self._session.run(self._outputs, feeds)
        return dict(zip(self._outputs, results, strict=True))

    def run_bound(self, inputs: Tensors, rows: int) -> dict[str, NDArray[Any]]:
        """One batch through an IOBinding: inputs are copied to the session's device once, outputs come back when all are done.

        String tensors cannot be bound, so that such models run as on the CPU.
        """
        if self._texts:
            return self.run(inputs, rows)
        binding = self._session.io_binding()
        for name, array in self._feeds.take(inputs, rows).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            binding.bind_output(name)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))


def _session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    # Left alone, ONNX Runtime takes every core of the machine, whatever the control group allows.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _LOG_ERRORS_ONLY
    return options


def obtained_providers(providers: Sequence[Provider]) -> list[str]:
    """Which of these providers compute here: a one-node model is loaded and run, because a provider that is compiled in may still lack its device."""
    x, y = TensorSpec("x", "FP32", (1, 4)), TensorSpec("y", "FP32", (1, 4))
    graph = helper.make_graph(
        [helper.make_node("Add", [x.name, x.name], [y.name])],
        "probe",
        [helper.make_tensor_value_info(x.name, TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(y.name, TensorProto.FLOAT, y.shape)],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = VariantSpec(name="probe", file="", sha256="", accuracy=0.0, inputs=(x,), outputs=(y,))
    try:
        session = OnnxRuntimeSession(model.SerializeToString(), spec, threads=1, providers=providers)
        session.run({x.name: np.ones(x.shape, np.float32)}, rows=1)
    except Exception:  # whatever a driver or its library says, the device cannot be used
        return []
    wanted = {name for name, _ in providers}
    return [name for name in session.providers if name in wanted]
