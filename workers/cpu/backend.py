"""The CPU backend: ONNX Runtime with the threads that the binding gives it."""

from __future__ import annotations

import time
from pathlib import Path

from schemas.catalog import VariantSpec
from workers.backend import BackendOptions, Device, Loaded, Tensors
from workers.cpu.onnxruntime_session import OnnxRuntimeSession, runtime_name
from workers.host import memory_bytes_max, processor_name, resident_bytes
from workers.onnx_files import read_variant


class CpuBackend:
    """Runs variants on the processor; batches of any size up to the limit, or of the one size that the model fixes."""

    loads_beside = True

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._sessions: dict[str, OnnxRuntimeSession] = {}
        self._name = processor_name()

    def describe(self) -> Device:
        return Device(
            accelerator="cpu",
            name=self._name,
            memory_bytes_max=self._options.memory_bytes_max or memory_bytes_max(),
            runtime=runtime_name(),
        )

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        started = time.perf_counter()
        resident = resident_bytes()
        model = read_variant(spec, file)
        rows = model.rows_within(batch_size_max)
        self._sessions[key] = OnnxRuntimeSession(model.data, model.spec, threads=threads)
        return Loaded(
            spec=model.spec,
            device=self._name,
            batch_sizes=() if rows is None else (rows,),
            # Pages of freed memory may have been used again: the weights are held in any case.
            memory_bytes=max(resident_bytes() - resident, len(model.data)),
            load_ms=(time.perf_counter() - started) * 1e3,
        )

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        return self._session(key).run(inputs, rows)

    def unload(self, key: str) -> None:
        self._sessions.pop(key, None)

    def _session(self, key: str) -> OnnxRuntimeSession:
        session = self._sessions.get(key)
        if session is None:
            raise KeyError(f"variant {key!r} is not loaded")
        return session
