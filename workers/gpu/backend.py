"""The GPU backend: ONNX Runtime with TensorRT, CUDA, ROCm, MIGraphX or DirectML, in the configured order, and never the CPU in silence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from schemas.catalog import VariantSpec
from schemas.errors import ConfigurationError, DeviceUnavailable, ModelRefused
from workers.backend import BackendOptions, Device, Loaded, Tensors
from workers.buckets import batch_buckets
from workers.cpu.onnxruntime_session import CPU_PROVIDER, OnnxRuntimeSession, Provider, available_providers, obtained_providers, runtime_name
from workers.host import memory_bytes_max, processor_name
from workers.onnx_files import read_variant

TENSORRT, CUDA, ROCM, MIGRAPHX, DIRECTML = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "ROCM", "MIGraphX", "Dml"))
SHORT_NAMES = {"tensorrt": TENSORRT, "cuda": CUDA, "rocm": ROCM, "migraphx": MIGRAPHX, "directml": DIRECTML}
DEFAULT_ORDER = tuple(SHORT_NAMES.values())
DEVICE_NODES = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg")
_WITH_ARENA = (CUDA, ROCM)
_COMPILED_BY_SHAPE = (TENSORRT, MIGRAPHX)


class GpuBackend:
    """Runs variants on one GPU; several variants share it, each with an arena of its own inside the device's memory limit."""

    loads_beside = True

    def __init__(self, options: BackendOptions) -> None:
        """Raises ConfigurationError for a provider that is not one for GPUs."""
        self._options = options
        self._wanted = _provider_names(options.providers)
        self._sessions: dict[str, OnnxRuntimeSession] = {}
        self._memory_bytes: dict[str, int] = {}

    def describe(self) -> Device:
        if self._providers:
            memory = self._options.memory_bytes_max
            return Device(accelerator="gpu", name=self._device_name(self._providers), memory_bytes_max=memory, runtime=runtime_name())
        if self._options.allow_cpu:
            memory = self._options.memory_bytes_max or memory_bytes_max()
            return Device(accelerator="cpu", name=self._device_name(()), memory_bytes_max=memory, runtime=runtime_name())
        raise DeviceUnavailable(self._what_was_looked_for())

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        self.describe()
        started = time.perf_counter()
        model = read_variant(spec, file)
        rows = model.rows_within(batch_size_max)
        limit = self._arena_bytes(key, spec.name, len(model.data))
        providers = [self._provider(name, limit) for name in self._providers] or [(CPU_PROVIDER, {})]
        session = OnnxRuntimeSession(model.data, model.spec, threads=threads, providers=providers)
        obtained = [name for name in session.providers if name in self._providers]
        if self._providers and not obtained:
            raise ModelRefused(f"{spec.name}: ONNX Runtime fell back to {', '.join(session.providers)} instead of {', '.join(self._providers)}")
        sizes = () if rows is None else (rows,)
        if rows is None and obtained and obtained[0] in _COMPILED_BY_SHAPE:
            sizes = batch_buckets(batch_size_max)
        self._sessions[key] = session
        self._memory_bytes[key] = len(model.data)
        load_ms = (time.perf_counter() - started) * 1e3
        return Loaded(spec=model.spec, device=self._device_name(obtained), batch_sizes=sizes, memory_bytes=len(model.data), load_ms=load_ms)

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        session = self._sessions.get(key)
        if session is None:
            raise KeyError(f"variant {key!r} is not loaded")
        return session.run_bound(inputs, rows)

    def unload(self, key: str) -> None:
        self._sessions.pop(key, None)
        self._memory_bytes.pop(key, None)

    @cached_property
    def _providers(self) -> tuple[str, ...]:
        """The wanted providers that compute on this machine, in the wanted order."""
        compiled_in = set(available_providers())
        candidates = [self._provider(name, 0) for name in self._wanted if name in compiled_in]
        obtained = set(obtained_providers(candidates)) if candidates else set[str]()
        return tuple(name for name in self._wanted if name in obtained)

    def _arena_bytes(self, key: str, name: str, model_bytes: int) -> int:
        """ONNX Runtime gives each session an arena of its own: a later variant may use what the weights of the others leave."""
        limit = self._options.memory_bytes_max
        if not limit:
            return 0
        left = limit - sum(size for other, size in self._memory_bytes.items() if other != key)
        if left < model_bytes:
            raise ModelRefused(f"{name}: needs at least {model_bytes} bytes of device memory, {max(left, 0)} of {limit} are left")
        return left

    def _provider(self, name: str, memory_bytes: int) -> Provider:
        options = {"device_id": str(self._options.device_id)}
        if name in _WITH_ARENA:
            options["arena_extend_strategy"] = "kSameAsRequested"
            if memory_bytes:
                options["gpu_mem_limit"] = str(memory_bytes)
        if name == TENSORRT and self._options.cache_folder is not None:
            self._options.cache_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            options["trt_engine_cache_enable"] = "1"
            options["trt_engine_cache_path"] = str(self._options.cache_folder)
        return name, options

    def _device_name(self, obtained: Sequence[str]) -> str:
        if not obtained:
            return f"{processor_name()} (CPU in place of a GPU)"
        kinds = "+".join(name.removesuffix("ExecutionProvider") for name in obtained)
        return f"{_gpu_name(self._options.device_id)} ({kinds})"

    def _what_was_looked_for(self) -> str:
        nodes = [str(node) for pattern in DEVICE_NODES for node in sorted(Path("/dev").glob(pattern))]
        return (
            f"no GPU to compute on: wanted one of {', '.join(self._wanted)}; {runtime_name()} here offers {', '.join(available_providers())}; "
            f"device nodes /dev/{{{','.join(DEVICE_NODES)}}}: {', '.join(nodes) or 'none'}. "
            "Install headrace[gpu] and the vendor's driver, or say --allow-cpu to compute on the CPU"
        )


def _provider_names(names: Sequence[str]) -> tuple[str, ...]:
    full = tuple(SHORT_NAMES.get(name.lower(), name) for name in names) or DEFAULT_ORDER
    for name in full:
        if name not in DEFAULT_ORDER:
            raise ConfigurationError(f"{name!r} is no GPU provider: use {', '.join(SHORT_NAMES)} (or ONNX Runtime's names for them)")
    return full


def _gpu_name(device_id: int) -> str:
    """NVIDIA's driver tells its boards' names in /proc; others go by their number."""
    boards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if device_id < len(boards):
        for line in boards[device_id].read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return value.strip()
    return f"GPU {device_id}"
