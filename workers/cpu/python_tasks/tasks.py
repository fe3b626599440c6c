"""A loaded Python task: in a process of its own, or, for what Headrace itself brings along, in this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec
import structlog

from schemas.catalog import VariantSpec
from schemas.datatypes import Array
from schemas.errors import BackendError, HeadraceError, ModelRefused
from workers.backend import Tensors
from workers.cpu.python_tasks.loading import NotLoadable, foreign_check, is_trusted, load_function
from workers.cpu.python_tasks.process import Broken, TaskProcess
from workers.cpu.python_tasks.returned import check_specs, checked_types

logger = structlog.get_logger()
_parameters = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Task(Protocol):
    """Something that can be called."""

    @property
    def memory_bytes(self) -> int: ...

    def call(self, inputs: Tensors, parameters: bytes) -> Tensors:
        """Raises BackendError naming the function and the reason."""
        ...

    def end(self) -> None: ...


class TaskInProcess:
    """Runs here, for speed: only Headrace's own functions. Calls of them that run somebody else's code go to a child, which starts with the first."""

    memory_bytes = 0

    def __init__(self, spec: VariantSpec, threads: int) -> None:
        """Raises ModelRefused."""
        self._spec, self._threads = spec, threads
        self._child: TaskInChild | None = None
        try:
            self._function = load_function(spec.call)
            self._is_foreign = foreign_check(self._function)
        except NotLoadable as error:
            raise ModelRefused(str(error)) from error

    def call(self, inputs: Tensors, parameters: bytes) -> Tensors:
        decoded = self._decoded(parameters)
        return self._in_child().call(inputs, parameters) if self._is_foreign(decoded) else self._called(inputs, decoded)

    def _decoded(self, parameters: bytes) -> dict[str, Any]:
        try:
            return _parameters(parameters) if parameters else {}
        except msgspec.DecodeError as error:
            raise BackendError(f"{self._spec.call}: its parameters cannot be read: {error}") from error

    def _called(self, inputs: Tensors, parameters: dict[str, Any]) -> Tensors:
        spec = self._spec
        try:
            returned = self._function(dict(inputs), parameters)
        except HeadraceError as error:
            raise BackendError(f"{spec.call}: {error}"[:500]) from error
        except Exception as error:  # it may stumble over what it was given
            raise BackendError(f"{spec.call}: it raised {type(error).__name__}: {error}"[:500]) from error
        return _checked(spec, lambda: checked_types(cast("object", returned)))

    def _in_child(self) -> TaskInChild:
        if self._child is None:
            try:
                self._child = TaskInChild(self._spec, self._threads)
            except ModelRefused as refused:
                raise BackendError(str(refused)) from refused
        return self._child

    def end(self) -> None:
        if self._child is not None:
            self._child.end()


class TaskInChild:
    """Runs in a process that is replaced when it hangs or dies; the request that it was busy with fails."""

    def __init__(self, spec: VariantSpec, threads: int) -> None:
        """Raises ModelRefused where the function cannot be loaded."""
        self._spec, self._threads = spec, threads
        self._process = self._started()
        self._process.await_ready()
        self.memory_bytes = self._process.resident_bytes

    def _started(self) -> TaskProcess:
        return TaskProcess(self._spec.call, self._spec.call_ms_max, self._threads)

    def call(self, inputs: Tensors, parameters: bytes) -> Tensors:
        spec = self._spec
        try:
            self._process.await_ready()
        except ModelRefused as refused:
            self._replace(str(refused))
            raise BackendError(str(refused)) from refused
        try:
            outputs = self._process.call(inputs, parameters, spec.call_ms_max)
        except Broken as broken:
            self._replace(str(broken))
            raise
        return _checked(spec, lambda: outputs)

    def _replace(self, reason: str) -> None:
        """The next one starts at once and imports while others compute; the next call waits for it."""
        logger.warning("the process of a Python task is replaced", call=self._spec.call, reason=reason)
        self._process.end()
        try:
            self._process = self._started()
        except ModelRefused as refused:  # the next call finds the old one dead, and tries again
            logger.warning("a Python task has no process", call=self._spec.call, error=str(refused))

    def end(self) -> None:
        self._process.end()


def load_task(spec: VariantSpec, threads: int) -> tuple[Task, float]:
    """The task, and how long loading took in milliseconds. Raises ModelRefused with the reason."""
    started = time.perf_counter()
    task = TaskInProcess(spec, threads) if is_trusted(spec.call) else TaskInChild(spec, threads)
    return task, (time.perf_counter() - started) * 1e3


def _checked(spec: VariantSpec, outputs: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    try:
        found = outputs()
        check_specs(found, spec.outputs)
    except ValueError as error:
        raise BackendError(f"{spec.call}: {error}") from None
    return found
