"""The plug-point of workers: a backend loads variants on one device and runs batches on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.catalog import VariantSpec
from schemas.telemetry import BoardState

Tensors = Mapping[str, NDArray[np.generic] | NDArray[np.object_]]
"""By name. BYTES tensors are object arrays of `bytes`; FP16 is float16. The first axis counts rows."""


Call = Callable[[Tensors, bytes], Tensors]
"""A Python task: one request's tensors (whose first axes may differ) and its parameters (a msgpack map, or empty). Raises BackendError."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend computes on, as its runtime names it."""

    accelerator: str
    """What answers say: the class, but `cpu` where a GPU backend was allowed to run on the CPU. `name` is the device that really computes."""
    name: str
    memory_bytes_max: int = 0
    """0 where it cannot be told."""
    runtime: str = ""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A variant in memory: how it must be fed, and which device executes it."""

    spec: VariantSpec
    device: str
    batch_sizes: tuple[int, ...] = ()
    """The only row counts that `infer` takes (ascending, a caller pads up to the next); empty: any up to batch_size_max."""
    memory_bytes: int = 0
    load_ms: float = 0.0
    call: Call | None = None
    """Set for a Python task: each request runs alone and whole through this, not through `infer`."""
    call_ms_max: float = 0.0
    """A call comes back by then, whatever it does."""


class Backend(Protocol):
    """One device. All methods may block: they are called on a worker thread, one call at a time, never on the event loop.

    But see `loads_beside` and `batches_at_once`: a backend may allow more.

    Plug-ins register a class in the entry-point group `headrace.backends`; it is built as `cls(options)`.
    """

    def describe(self) -> Device:
        """Raises DeviceUnavailable, saying what was looked for, where the device is not here. Asked of an idle device every few seconds, too."""
        ...

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        """Load and make runnable. `file` was verified by the model repository. Raises ModelRefused with the reason, DeviceUnavailable."""
        ...

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        """Run one batch of exactly `rows` rows (one of `batch_sizes` where those are given). Raises whatever the runtime raises."""
        ...

    def unload(self, key: str) -> None:
        """Free the variant; unknown keys are no error."""
        ...


def loads_beside(backend: Backend) -> bool:
    """Whether it says (`loads_beside = True`) that `load`, and `infer` of a variant that is not served yet, may go on beside `infer` of others."""
    return bool(getattr(backend, "loads_beside", False))


def batches_at_once(backend: Backend) -> int:
    """How many threads may be in `infer` (and one in `describe` beside them), for the same variant or others; all else still comes alone.

    A backend that says more than 1 computes in the order of the calls, and prepares one batch while it computes another. One that loads beside takes
    batches one by one: what is measured while it loads has the device to itself.
    """
    return 1 if loads_beside(backend) else int(getattr(backend, "batches_at_once", 1))


@runtime_checkable
class DrivesBoard(Protocol):
    """What a backend may have beside: a board to tell of, whose clock can be set. Both return at once, on any thread."""

    def board_state(self) -> BoardState:
        """As it was seen last."""
        ...

    def set_clock(self, clock_mhz: float | None) -> None:
        """From the next batch on; None: as the variant's design says, which is also the most."""
        ...


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's command line says to its backend."""

    accelerator: str
    device: str | None = None
    device_id: int = 0
    allow_cpu: bool = False
    memory_bytes_max: int = 0
    providers: Sequence[str] = ()
    cache_folder: Path | None = None
