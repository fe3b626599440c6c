"""Catalog records: tasks with their variants, and endpoints; what `headrace apply` writes and every role reads."""

from __future__ import annotations

import msgspec

from schemas.control import CONTROL_KEY, CONTROL_KEY_PREFIX, ControlSpec, decode_control
from schemas.decoding import strict
from schemas.graph import GraphSpec
from schemas.learned import DECLARED, LEARNED_KEY, LEARNED_KEY_PREFIX, AccuracyPolicy, Learned, decode_learned
from schemas.tap import TapSpec

CATALOG_VERSION = 1
TASK_KEY_PREFIX = "task/"


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a variant: Open Inference Protocol datatype and shape, -1 for a free axis (the first: rows)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class VariantSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One deployable form of a task's model; `accuracy` in [0, 1] is what floors are compared with."""

    name: str
    file: str = ""
    sha256: str = ""
    call: str = ""
    """`package.module:function` (or an entry point's name) instead of a file: a Python task, on CPU workers."""
    call_ms_max: int = 10_000
    """A call that has not returned by then fails its request."""
    accuracy: float
    accelerators: tuple[str, ...] = ("cpu",)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batch_size_max: int = 32


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage computes, with the variants that can compute it."""

    name: str
    variants: tuple[VariantSpec, ...]
    version: int = CATALOG_VERSION

    def variant(self, name: str) -> VariantSpec | None:
        return next((variant for variant in self.variants if variant.name == name), None)


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a request to the endpoint gets where it says nothing."""

    min_accuracy: float = 0.0
    timeout_ms: int = 1_000
    priority: int = 0


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """Token bucket of one tenant: requests a second, and how many at once after a quiet time."""

    rate_rps: float
    burst: int = 1


class AgreementSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A `sample` (0..1) of the completed requests is asked of the most accurate variant, too, as a shadow."""

    sample: float


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The name that a client calls; `quotas` by tenant, `*` for every tenant not named."""

    name: str
    task: str = ""
    """Of an endpoint of one stage; else `graph`."""
    graph: GraphSpec | None = None
    revision: int = 0
    """Counts the graphs that this endpoint has had: running requests finish on theirs."""
    defaults: Defaults = Defaults()
    quotas: dict[str, Quota] = {}
    accuracy_policy: AccuracyPolicy = DECLARED
    """What floors are compared with, of an endpoint of one stage: the declared accuracies, or what feedback says of them."""
    taps: TapSpec | None = None
    """None: nothing of it is tapped."""
    agreement: AgreementSpec | None = None
    """Of an endpoint of one stage: whether its answers agree with those of the most accurate variant is counted."""
    version: int = CATALOG_VERSION


def variant_key(task: str, variant: str) -> str:
    """The name of a variant outside its task: `task/variant`."""
    return f"{task}/{variant}"


def split_variant_key(key: str) -> tuple[str, str]:
    """(task, variant) of a variant key."""
    task, _, variant = key.partition("/")
    return task, variant


class Catalog(msgspec.Struct):
    """The catalog as it stands after reading the topic: a fold over its records."""

    tasks: dict[str, TaskSpec] = {}
    endpoints: dict[str, EndpointSpec] = {}
    control: ControlSpec = ControlSpec()
    learned: Learned = Learned()
    retired: dict[str, int] = {}
    """Last revisions of endpoints that were deleted, as far back as the log goes: who comes again under the name counts on from there."""

    def apply(self, key: bytes, value: bytes | None) -> bool:
        """Fold one record of {p}.catalog in; None is a tombstone. False: it is for others, and changes nothing here.

        Raises msgspec.ValidationError for what is not a catalog record.
        """
        name = key.decode()
        if name.startswith(CONTROL_KEY_PREFIX):
            if key != CONTROL_KEY:
                return False
            self.control = decode_control(value) if value is not None else ControlSpec()
        elif name.startswith(LEARNED_KEY_PREFIX):
            if key != LEARNED_KEY:
                return False
            self.learned = decode_learned(value) if value is not None else Learned()
        elif name.startswith(TASK_KEY_PREFIX):
            task_name = name.removeprefix(TASK_KEY_PREFIX)
            if value is None:
                self.tasks.pop(task_name, None)
            else:
                self.tasks[task_name] = decode_task(value)
        elif value is None:
            gone = self.endpoints.pop(name, None)
            if gone is not None and gone.revision:
                self.retired[name] = gone.revision
        else:
            self.endpoints[name] = decode_endpoint(value)
        return True

    def variants(self) -> dict[str, VariantSpec]:
        """Every variant by its key."""
        return {variant_key(task.name, v.name): v for task in self.tasks.values() for v in task.variants}


_encode = msgspec.json.Encoder().encode
_decode_task = strict(msgspec.json.Decoder(TaskSpec).decode)
_decode_endpoint = strict(msgspec.json.Decoder(EndpointSpec).decode)


def decode_task(value: bytes) -> TaskSpec:
    """TaskSpec of a catalog record. Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode_task(value)


def decode_endpoint(value: bytes) -> EndpointSpec:
    """EndpointSpec of a catalog record. Raises msgspec.DecodeError (ValidationError) for anything else."""
    spec = _decode_endpoint(value)
    if bool(spec.task) == (spec.graph is not None):
        raise msgspec.ValidationError("an endpoint has a `task` or a `graph`, one of them")
    return spec


def catalog_key(spec: TaskSpec | EndpointSpec) -> bytes:
    """Key of the record in {p}.catalog: `task/NAME` or the endpoint's name."""
    return (TASK_KEY_PREFIX + spec.name if isinstance(spec, TaskSpec) else spec.name).encode()


def encode_catalog(spec: TaskSpec | EndpointSpec) -> bytes:
    """The record's value."""
    return _encode(spec)
