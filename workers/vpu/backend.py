# pyright: reportUnknownMemberType=false
# (the types that openvino ships refer to types it does not ship)
"""The VPU backend: OpenVINO on the NPU, one statically shaped compiled model per batch bucket, and no other device than the one that was named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import openvino

from schemas.catalog import VariantSpec
from schemas.errors import DeviceUnavailable, ModelRefused
from workers.backend import BackendOptions, Device, Loaded, Tensors
from workers.buckets import batch_buckets
from workers.feeds import Feeds
from workers.host import memory_bytes_max, resident_bytes
from workers.onnx_files import FittedModel, read_variant
from workers.vpu.compiled import CompiledBatch

DEFAULT_DEVICE = "NPU"
CPU_DEVICE = "CPU"
DEVICE_KINDS = ("NPU", "GPU", "CPU")
_DEVICE_NODES = "accel/accel*"


class VpuBackend:
    """Runs variants on one OpenVINO device: `NPU` unless another is named.

    OpenVINO's AUTO, MULTI and HETERO would compute on the CPU without a word, so that they are refused.
    """

    loads_beside = True

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._core = openvino.Core()
        self._loaded: dict[str, tuple[Feeds, dict[int, CompiledBatch]]] = {}

    def describe(self) -> Device:
        device = self._device()
        kind = _kind(device)
        memory = self._options.memory_bytes_max or (memory_bytes_max() if kind == CPU_DEVICE else 0)
        precision = " f32" if kind == CPU_DEVICE else ""
        return Device(
            # The class that answers; the name says which device of OpenVINO's really computes.
            accelerator="vpu",
            name=self._device_name([device]),
            memory_bytes_max=memory,
            runtime=f"openvino {_version()}{precision}",
        )

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        device = self._device()
        started = time.perf_counter()
        resident = resident_bytes()
        model = read_variant(spec, file)
        rows = model.rows_within(batch_size_max)
        self._refuse_unsupported(model, device)
        sizes = batch_buckets(batch_size_max) if rows is None else (rows,)
        compiled = self._compile(model, device, sizes, threads)
        self._loaded[key] = Feeds(model.spec), compiled
        return Loaded(
            spec=model.spec,
            device=self._device_name(compiled[sizes[-1]].execution_devices),
            batch_sizes=sizes,
            memory_bytes=max(resident_bytes() - resident, len(model.data)),
            load_ms=(time.perf_counter() - started) * 1e3,
        )

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        loaded = self._loaded.get(key)
        if loaded is None:
            raise KeyError(f"variant {key!r} is not loaded")
        feeds, compiled = loaded
        batch = compiled.get(rows)
        if batch is None:
            raise ValueError(f"{rows} rows: variant {key!r} was compiled for {', '.join(map(str, compiled))}")
        return batch.run(feeds.take(inputs, rows))

    def unload(self, key: str) -> None:
        self._loaded.pop(key, None)

    def _device(self) -> str:
        """The device to compute on. Raises DeviceUnavailable with what is here where it is not."""
        wanted = self._options.device or DEFAULT_DEVICE
        if self._options.device_id and "." not in wanted:
            wanted = f"{wanted}.{self._options.device_id}"
        available = list(self._core.available_devices)
        if _kind(wanted) not in DEVICE_KINDS:
            raise DeviceUnavailable(
                f"device {wanted!r}: name one OpenVINO device ({', '.join(available)} are here), not a choice that may end on the CPU"
            )
        if wanted in available or wanted in {_kind(device) for device in available}:
            return wanted
        if self._options.allow_cpu and CPU_DEVICE in available:
            return CPU_DEVICE
        nodes = ", ".join(str(node) for node in sorted(Path("/dev").glob(_DEVICE_NODES))) or "none"
        raise DeviceUnavailable(
            f"no device {wanted} to compute on: OpenVINO {_version()} sees {', '.join(available) or 'none'}; "
            f"device nodes /dev/{_DEVICE_NODES}: {nodes}. "
            "Install the vendor's driver, or say --device CPU to compute on the CPU"
        )

    def _device_name(self, execution_devices: list[str]) -> str:
        names = [str(self._core.get_property(device, "FULL_DEVICE_NAME")) for device in execution_devices]
        return f"{' + '.join(names)} (OpenVINO {','.join(execution_devices)})"

    def _refuse_unsupported(self, model: FittedModel, device: str) -> None:
        for tensor in (*model.spec.inputs, *model.spec.outputs):
            if tensor.datatype == "BYTES":
                # Measured with 2026.4: the process aborts when OpenVINO frees a string tensor made in Python.
                raise ModelRefused(f"{model.spec.name}: {tensor.name!r} is BYTES, which the OpenVINO backend cannot carry")
        free = [tensor.name for tensor in model.spec.inputs if -1 in tensor.shape[1:]]
        if free and _kind(device) == "NPU":
            raise ModelRefused(f"{model.spec.name}: {', '.join(free)} has a free axis besides its rows, and an NPU takes static shapes only")

    def _compile(self, model: FittedModel, device: str, sizes: tuple[int, ...], threads: int) -> dict[int, CompiledBatch]:
        settings = self._settings(device, threads)
        try:
            network = self._core.read_model(model.data)
            return {rows: CompiledBatch(self._core, network.clone(), device, settings, spec=model.spec, rows=rows) for rows in sizes}
        except RuntimeError as error:
            raise ModelRefused(f"{model.spec.name}: OpenVINO cannot compile the model for {device}: {error}") from error

    def _settings(self, device: str, threads: int) -> dict[str, Any]:
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self._options.cache_folder is not None:
            self._options.cache_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            settings["CACHE_DIR"] = str(self._options.cache_folder)
        if _kind(device) == CPU_DEVICE:
            settings |= {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                # Several workers on one machine would all be pinned to the same cores.
                "ENABLE_CPU_PINNING": False,
                # Processors with AMX would compute in bf16, and the accuracy would not be the declared one.
                "INFERENCE_PRECISION_HINT": "f32",
            }
        return settings


def _version() -> str:
    return openvino.__version__.partition("-")[0]


def _kind(device: str) -> str:
    return device.partition(".")[0]
