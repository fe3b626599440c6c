"""Catalog files: what YAML documents of `kind: task` and `kind: endpoint` must say, and the specs that come of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields, FieldsExhausted, Problems, Source, as_fields, line_of, read_documents
from schemas.catalog import Catalog, Defaults, EndpointSpec, Quota, TaskSpec, TensorSpec, VariantSpec
from schemas.datatypes import DATATYPES
from schemas.errors import ModelRefused
from schemas.limits import Limits
from schemas.names import ACCELERATORS, NAME
from workers.models import model_path
from workers.onnx_files import read_variant

KINDS = ("task", "endpoint")
TASK_KEYS = ("kind", "name", "variants")
VARIANT_KEYS = ("name", "file", "sha256", "accuracy", "accelerators", "inputs", "outputs", "batch_size_max")
TENSOR_KEYS = ("name", "datatype", "shape")
ENDPOINT_KEYS = ("kind", "name", "task", "defaults", "quotas")
DEFAULTS_KEYS = ("min_accuracy", "timeout_ms", "priority")
QUOTA_KEYS = ("rate_rps", "burst")
ANY_TENANT = "*"
VARIANTS_MAX = 256
BATCH_SIZE_MAX = 32
"""Where a variant states none."""
RATE_RPS_MAX = 1e9
Spec = TypeVar("Spec")
SHA256 = re.compile(r"^[0-9a-f]{64}$")


class CatalogFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say: specs in the order of the files, and where each model file (by SHA-256) lies."""

    tasks: tuple[TaskSpec, ...] = ()
    endpoints: tuple[EndpointSpec, ...] = ()
    models: dict[str, Path] = {}


class _Stated(msgspec.Struct, Generic[Spec], frozen=True):
    """A spec with the place that states it, for problems found later."""

    spec: Spec
    fields: Fields


def load_catalog_files(paths: Sequence[Path], present: Catalog | None = None, limits: Limits | None = None) -> CatalogFiles:
    """Read, check and cross-check YAML files; model files are hashed and compared.

    `present` is the catalog as it stands: endpoints may name its tasks (not checked where it is None: not known yet).
    Raises CatalogError with every problem, one a line: `file:line: what`.
    """
    loader = _Loader(limits or Limits())
    for path in paths:
        loader.read(path)
    loader.cross_check(present)
    loader.problems.raise_if_any()
    return CatalogFiles(
        tasks=tuple(stated.spec for stated in loader.tasks.values()),
        endpoints=tuple(stated.spec for stated in loader.endpoints.values()),
        models=loader.models,
    )


class _Loader:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.problems = Problems()
        self.tasks: dict[str, _Stated[TaskSpec]] = {}
        self.endpoints: dict[str, _Stated[EndpointSpec]] = {}
        self.models: dict[str, Path] = {}
        self.incomplete_tasks: set[str] = set()
        """Named, but with problems of their own: what refers to them is not blamed for it."""

    def read(self, path: Path) -> None:
        documents = read_documents(path, self.problems)
        if not documents and not self.problems.found:
            self.problems.add(str(path), 1, f"no document in the file: each states `kind: {'` or `kind: '.join(KINDS)}`")
        with suppress(FieldsExhausted):
            for source, node in documents:
                self._document(source, node)

    def _document(self, source: Source, node: Any) -> None:
        kind = _kind_of(source, node)
        if kind == "task":
            fields = as_fields(source, node, "a task", TASK_KEYS)
            if fields is not None:
                self._task(fields)
        elif kind == "endpoint":
            fields = as_fields(source, node, "an endpoint", ENDPOINT_KEYS)
            if fields is not None:
                self._endpoint(fields)

    def _task(self, fields: Fields) -> None:
        before = len(self.problems.found)
        name = self._name(fields, "name")
        nodes = fields.items("variants")
        if not nodes:
            fields.missing("variants")
        elif len(nodes) > VARIANTS_MAX:
            fields.problem("variants", f"{len(nodes)} variants, the limit is {VARIANTS_MAX}")
        variants: dict[str, VariantSpec] = {}
        for node in (nodes or [])[:VARIANTS_MAX]:
            variant_fields = as_fields(fields.source, node, "a variant", VARIANT_KEYS)
            variant = None if variant_fields is None else self._variant(variant_fields)
            if variant is None:
                continue
            if variant.name in variants:
                fields.source.add(line_of(node), f"variant {variant.name!r} stands twice in the task")
            variants[variant.name] = variant
        if name is None:
            return
        if name in self.tasks or name in self.incomplete_tasks:
            fields.problem("name", f"task {name!r} is stated twice")
        if len(self.problems.found) > before:
            self.incomplete_tasks.add(name)
        else:
            self.tasks[name] = _Stated(TaskSpec(name=name, variants=tuple(variants.values())), fields)

    def _variant(self, fields: Fields) -> VariantSpec | None:
        name = self._name(fields, "name")
        accuracy = fields.number("accuracy", 0.0, 1.0)
        if "accuracy" not in fields:
            fields.missing("accuracy")
        model = self._model(fields)
        accelerators = self._accelerators(fields)
        batch_size_max = fields.integer("batch_size_max", 1, self.limits.rows_max)
        inputs, outputs = self._tensors(fields, "inputs"), self._tensors(fields, "outputs")
        if name is None or accuracy is None or model is None:
            return None
        file, sha256 = model
        spec = VariantSpec(
            name=name,
            file=file,
            sha256=sha256,
            accuracy=accuracy,
            accelerators=accelerators,
            inputs=inputs,
            outputs=outputs,
            batch_size_max=batch_size_max or BATCH_SIZE_MAX,
        )
        try:
            # What the file leaves out (inputs, outputs) comes from the model; what it says must fit it.
            return read_variant(spec, self.models[sha256], bytes_max=self.limits.model_bytes_max).spec
        except ModelRefused as refused:
            fields.problem("file", str(refused))
            return None

    def _model(self, fields: Fields) -> tuple[str, str] | None:
        """(file as stated, SHA-256); the file lies relative to the YAML file, and its content is what the hash says."""
        file, stated = fields.text("file"), fields.text("sha256")
        if file is None:
            if "file" not in fields:
                fields.missing("file")
            return None
        try:
            path = model_path(fields.source.path.parent, file)
            found = self._digest(path)
        except ModelRefused as refused:
            fields.problem("file", str(refused))
            return None
        if stated == found:
            self.models[found] = path
            return file, found
        if "sha256" not in fields:
            fields.problem("file", f"the variant needs `sha256`: {path.name} has sha256: {found}")
        elif stated is not None and not SHA256.match(stated):
            fields.problem("sha256", f"`sha256` is 64 lower-case hexadecimal digits; {path.name} has {found}")
        elif stated is not None:
            fields.problem("sha256", f"{path.name} is another file than stated: its SHA-256 is {found}")
        return None

    def _digest(self, path: Path) -> str:
        if not path.is_file():
            raise ModelRefused(f"there is no file {path}")
        if path.stat().st_size > self.limits.model_bytes_max:
            raise ModelRefused(f"{path} has {path.stat().st_size} bytes, the limit is {self.limits.model_bytes_max}")
        try:
            with path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise ModelRefused(f"{path} cannot be read: {error.strerror}") from None

    def _accelerators(self, fields: Fields) -> tuple[str, ...]:
        stated = fields.texts("accelerators")
        if stated is None:
            return ("cpu",)
        if not stated:
            fields.problem("accelerators", f"`accelerators` is empty: name some of {', '.join(ACCELERATORS)}")
        for name, line in stated:
            if name not in ACCELERATORS:
                fields.source.add(line, f"unknown accelerator {name!r}{did_you_mean(name, ACCELERATORS)}")
        return tuple(dict.fromkeys(name for name, _ in stated))

    def _tensors(self, fields: Fields, key: str) -> tuple[TensorSpec, ...]:
        nodes = fields.items(key) or []
        if len(nodes) > self.limits.tensors_max:
            fields.problem(key, f"{len(nodes)} {key}, the limit is {self.limits.tensors_max}")
        found: dict[str, TensorSpec] = {}
        for node in nodes[: self.limits.tensors_max]:
            tensor_fields = as_fields(fields.source, node, f"a tensor of `{key}`", TENSOR_KEYS)
            tensor = None if tensor_fields is None else self._tensor(tensor_fields)
            if tensor is not None and tensor.name in found:
                fields.source.add(line_of(node), f"tensor {tensor.name!r} stands twice in `{key}`")
            elif tensor is not None:
                found[tensor.name] = tensor
        return tuple(found.values())

    def _tensor(self, fields: Fields) -> TensorSpec | None:
        for key in TENSOR_KEYS:
            if key not in fields:
                fields.missing(key)
        name, datatype, shape = fields.text("name"), fields.text("datatype"), fields.integers("shape")
        if datatype is not None and datatype not in DATATYPES:
            fields.problem("datatype", f"unknown datatype {datatype!r}{did_you_mean(datatype.upper(), DATATYPES)}")
        if shape is not None and not 1 <= len(shape) <= self.limits.rank_max:
            fields.problem("shape", f"`shape` has {len(shape)} axes: it has 1 to {self.limits.rank_max}, the first counts rows")
        elif shape is not None and any(axis != -1 and axis < 1 for axis in shape):
            fields.problem("shape", f"`shape` {shape} has an axis that is neither -1 (free) nor 1 or more")
        if name is None or datatype is None or shape is None:
            return None
        return TensorSpec(name, datatype, tuple(shape))

    def _endpoint(self, fields: Fields) -> None:
        before = len(self.problems.found)
        name, task = self._name(fields, "name"), self._name(fields, "task")
        defaults = self._defaults(fields.mapping("defaults", "`defaults`", DEFAULTS_KEYS))
        quotas = self._quotas(fields.mapping("quotas", "`quotas`", None))
        if name is None or task is None:
            return
        if name in self.endpoints:
            fields.problem("name", f"endpoint {name!r} is stated twice")
        if len(self.problems.found) == before:
            self.endpoints[name] = _Stated(EndpointSpec(name=name, task=task, defaults=defaults, quotas=quotas), fields)

    def _defaults(self, fields: Fields | None) -> Defaults:
        if fields is None:
            return Defaults()
        stated = {
            "min_accuracy": fields.number("min_accuracy", 0.0, 1.0),
            "timeout_ms": fields.integer("timeout_ms", 1, self.limits.timeout_ms_max),
            "priority": fields.integer("priority", 0, self.limits.priority_max),
        }
        return msgspec.convert({key: value for key, value in stated.items() if value is not None}, Defaults)

    def _quotas(self, fields: Fields | None) -> dict[str, Quota]:
        found: dict[str, Quota] = {}
        for tenant in [] if fields is None else fields.keys():
            assert fields is not None
            if tenant != ANY_TENANT and not self._is_name(tenant):
                fields.problem(tenant, f"{tenant!r} is not a tenant's name: letters, digits, `.`, `_`, `-`; `*` is any other tenant")
            quota = fields.mapping(tenant, f"the quota of {tenant!r}", QUOTA_KEYS)
            if quota is None:
                continue
            if "rate_rps" not in quota:
                quota.missing("rate_rps")
            rate_rps, burst = quota.number("rate_rps", 0.0, RATE_RPS_MAX), quota.integer("burst", 1, int(RATE_RPS_MAX))
            if rate_rps is not None:
                found[tenant] = Quota(rate_rps=rate_rps, burst=burst or 1)
        return found

    def _name(self, fields: Fields, key: str, *, required: bool = True) -> str | None:
        name = fields.text(key)
        if name is None:
            if required and key not in fields:
                fields.missing(key)
            return None
        if self._is_name(name):
            return name
        fields.problem(
            key, f"{name[:150]!r} is not a name: letters, digits, `.`, `_`, `-`, a letter or digit first, {self.limits.name_bytes_max} at most"
        )
        return None

    def _is_name(self, name: str) -> bool:
        return NAME.fullmatch(name) is not None and len(name) <= self.limits.name_bytes_max

    def cross_check(self, present: Catalog | None) -> None:
        """What documents say about each other, and about the catalog as it stands."""
        tasks = (present.tasks if present else {}) | {name: stated.spec for name, stated in self.tasks.items()}
        for stated in self.endpoints.values():
            task = tasks.get(stated.spec.task)
            if task is not None and stated.spec.defaults.min_accuracy > _best(task):
                stated.fields.problem("defaults", _floor_message(stated.spec, task))
            elif task is None and present is not None and stated.spec.task not in self.incomplete_tasks:
                known = did_you_mean(stated.spec.task, tasks)
                stated.fields.problem("task", f"task {stated.spec.task!r} is neither in these files nor in the catalog{known}")
        for endpoint in present.endpoints.values() if present else ():
            changed = self.tasks.get(endpoint.task)
            if changed is not None and endpoint.name not in self.endpoints and endpoint.defaults.min_accuracy > _best(changed.spec):
                changed.fields.problem("variants", _floor_message(endpoint, changed.spec))


def _kind_of(source: Source, node: Any) -> str | None:
    fields = as_fields(source, node, "a document", None)
    if fields is None:
        return None
    kind = fields.text("kind")
    if kind in KINDS:
        return kind
    if "kind" not in fields:
        fields.missing("kind")
    elif kind is not None:
        fields.problem("kind", f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    return None


def _best(task: TaskSpec) -> float:
    return max((variant.accuracy for variant in task.variants), default=0.0)


def _floor_message(endpoint: EndpointSpec, task: TaskSpec) -> str:
    return (
        f"endpoint {endpoint.name!r} asks for an accuracy of {endpoint.defaults.min_accuracy:g} by default,"
        f" but the best variant of task {task.name!r} reaches {_best(task):g}"
    )
