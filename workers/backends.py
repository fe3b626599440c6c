"""The registry of backends: built-ins by name and accelerator class, others from the entry-point group, loaded when they are asked for.

Errors: ConfigurationError for a name or class that nobody offers (it lists the known ones), DeviceUnavailable where the vendor's library is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from schemas.errors import ConfigurationError, DeviceUnavailable
from schemas.names import ACCELERATORS
from workers.backend import Backend, BackendOptions
from workers.cpu.python_tasks.backend import WithPythonTasks

GROUP = "headrace.backends"
BUILT_IN = {
    "onnxruntime-cpu": "workers.cpu.backend:CpuBackend",
    "onnxruntime-gpu": "workers.gpu.backend:GpuBackend",
    "openvino": "workers.vpu.backend:VpuBackend",
    "pynq": "workers.fpga.backend:FpgaBackend",
}
DEFAULT_BACKENDS = {"cpu": "onnxruntime-cpu", "gpu": "onnxruntime-gpu", "vpu": "openvino", "fpga": "pynq"}
_EXTRAS = {"onnxruntime-cpu": "cpu", "onnxruntime-gpu": "gpu", "openvino": "vpu", "pynq": "fpga"}
BackendFactory = Callable[[BackendOptions], Backend]


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def backend_names() -> list[str]:
    """Every backend that can be asked for here, built in or installed."""
    return sorted({*BUILT_IN, *_plug_ins()})


def default_backend(accelerator: str) -> str:
    """The backend of an accelerator class. Raises ConfigurationError where the class is unknown or has none of its own."""
    if accelerator not in ACCELERATORS:
        raise ConfigurationError(f"accelerator {accelerator!r} is unknown: use one of {', '.join(ACCELERATORS)}")
    name = DEFAULT_BACKENDS.get(accelerator)
    if name is None:
        raise ConfigurationError(f"accelerator {accelerator!r} has no backend of its own: name one of {', '.join(backend_names())}")
    return name


def backend_factory(name: str) -> BackendFactory:
    """The class (or function) that builds a backend; its vendor library is imported now and not before."""
    try:
        if name in BUILT_IN:
            module, _, attribute = BUILT_IN[name].partition(":")
            return cast("BackendFactory", getattr(import_module(module), attribute))
        point = _plug_ins().get(name)
        if point is None:
            raise ConfigurationError(f"backend {name!r} is unknown: the known ones are {', '.join(backend_names())}")
        return cast("BackendFactory", point.load())
    except ImportError as error:
        extra = f"install headrace[{_EXTRAS[name]}]" if name in _EXTRAS else "install what its package asks for"
        raise DeviceUnavailable(f"backend {name!r} cannot be loaded ({error}): {extra}") from error


def create_backend(options: BackendOptions, name: str | None = None) -> Backend:
    """Build the named backend, or the accelerator class's own; on the CPU with Python tasks beside its models."""
    backend = backend_factory(name or default_backend(options.accelerator))(options)
    return WithPythonTasks(backend) if options.accelerator == "cpu" else backend
