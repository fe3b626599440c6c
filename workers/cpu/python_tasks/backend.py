"""A CPU worker's backend with Python tasks beside its models: by the variant's kind, one or the other has it."""

from __future__ import annotations

from pathlib import Path

from schemas.catalog import VariantSpec
from schemas.errors import ModelRefused
from workers.backend import Backend, Device, Loaded, Tensors, loads_beside
from workers.cpu.python_tasks.process import LOAD_MS_MAX
from workers.cpu.python_tasks.tasks import Task, load_task


class WithPythonTasks:
    """Passes models on to the backend that it wraps, and keeps the tasks itself."""

    def __init__(self, models: Backend) -> None:
        self._models = models
        self._tasks: dict[str, Task] = {}
        self.loads_beside = loads_beside(models)

    def describe(self) -> Device:
        return self._models.describe()

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        if not spec.call:
            return self._models.load(key, spec, file, batch_size_max=batch_size_max, threads=threads)
        if spec.call_ms_max < 1:
            raise ModelRefused(f"{spec.name}: call_ms_max {spec.call_ms_max} leaves no time for a call")
        self.unload(key)
        task, load_ms = load_task(spec, threads)
        self._tasks[key] = task
        return Loaded(
            spec=spec,
            device=self._models.describe().name,
            memory_bytes=task.memory_bytes,
            load_ms=load_ms,
            call=task.call,
            # At worst it waits for its process to import the function again, and then hangs.
            call_ms_max=spec.call_ms_max + LOAD_MS_MAX,
        )

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        """A model's batch; a task is called without parameters, whatever the rows."""
        task = self._tasks.get(key)
        return self._models.infer(key, inputs, rows) if task is None else task.call(inputs, b"")

    def unload(self, key: str) -> None:
        task = self._tasks.pop(key, None)
        if task is None:
            self._models.unload(key)
        else:
            task.end()
