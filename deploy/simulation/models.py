"""`models` of a scenario: families by name, catalog files with profiles, and tasks stated in place, put together into one catalog with costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from deploy.catalog_files import load_catalog_files
from deploy.catalog_tasks import is_name, read_name
from deploy.families.family import Family
from deploy.simulation.costs import COST_KEYS, contradiction, read_cost
from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields, as_fields
from scaler.optimizers.snapshot import Cost, Variant
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec, variant_key
from schemas.errors import CatalogError, HeadraceError
from schemas.limits import Limits
from schemas.names import ACCELERATORS
from schemas.profile import Profile

MODELS_KEYS = ("families", "files", "profiles", "costs", "tasks", "endpoints", "accelerators")
TASK_KEYS = ("name", "variants")
VARIANT_KEYS = ("name", "accuracy", "batch_size_max", "costs")
ROWS_MAX = 4_096
INPUTS = (TensorSpec("x", "FP32", (-1, 1)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 1)),)
"""Of tasks stated in place: nothing is computed, graphs only need names to connect."""


Families = Callable[[str], Family]
"""Makes a family by its name. Raises HeadraceError, with what is known, for any other."""


class _Profiles(msgspec.Struct):
    profiles: list[Profile] = []


class ModelReader:
    """Gathers the models of one scenario; everything wrong is reported at its place."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self._limits = Limits()
        self.catalog = Catalog()
        self.accelerators = {name: name for name in ACCELERATORS}
        self.provenance: list[str] = []
        self.fan_out: dict[str, dict[str, dict[str, float]]] = {}
        self.branches: dict[str, dict[str, dict[str, float]]] = {}
        """By endpoint, as its family has them: what a load gets that says nothing else."""
        self._variants: dict[str, Variant] = {}

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(self._variants.values())

    def read(self, fields: Fields) -> None:
        """Families first, then what is stated in place, then files, which may refer to both, then costs."""
        for name, line in fields.texts("families") or []:
            try:
                self._add(self._families(name))
            except HeadraceError as error:
                fields.source.add(line, str(error))
        for node in fields.items("tasks") or []:
            task = as_fields(fields.source, node, "a task", TASK_KEYS)
            if task is not None:
                self._task(task)
        self._files(fields)
        self._profiles(fields)
        costs = fields.mapping("costs", "`costs`", None)
        for key in [] if costs is None else costs.keys():
            assert costs is not None
            if self._known(costs, key):
                self._costs(costs, key, key)
        self._endpoints(fields)
        self._classes(fields)

    def _add(self, family: Family) -> None:
        self.catalog.tasks |= family.catalog.tasks
        self.catalog.endpoints |= family.catalog.endpoints
        self._variants |= {variant.key: variant for variant in family.variants}
        self.accelerators |= family.accelerators
        for name in family.catalog.endpoints:
            self.fan_out[name], self.branches[name] = family.fan_out, family.branches
        if family.provenance:
            self.provenance.append(family.provenance)

    def _task(self, fields: Fields) -> None:
        name = read_name(fields, "name", self._limits)
        nodes = fields.items("variants")
        if not nodes:
            fields.missing("variants")
        if name is None:
            return
        if name in self.catalog.tasks:
            fields.problem("name", f"task {name!r} is stated twice")
        found: list[VariantSpec] = []
        for node in nodes or []:
            inner = as_fields(fields.source, node, "a variant", VARIANT_KEYS)
            spec = None if inner is None else self._variant(inner, name)
            if spec is not None:
                found.append(spec)
        self.catalog.tasks[name] = TaskSpec(name=name, variants=tuple(found))

    def _variant(self, fields: Fields, task: str) -> VariantSpec | None:
        name, accuracy = read_name(fields, "name", self._limits), fields.number("accuracy", 0.0, 1.0)
        for key in ("accuracy", "costs"):
            if key not in fields:
                fields.missing(key)
        batch_size_max = fields.integer("batch_size_max", 1, ROWS_MAX)
        if name is None or accuracy is None:
            return None
        key = variant_key(task, name)
        if key in self._variants:
            fields.problem("name", f"variant {name!r} stands twice in task {task!r}")
        spec = VariantSpec(name=name, accuracy=accuracy, batch_size_max=batch_size_max or 32, inputs=INPUTS, outputs=OUTPUTS)
        self._variants[key] = Variant(key=key, task=task, accuracy=accuracy, batch_size_max=spec.batch_size_max, costs={})
        self._costs(fields, "costs", key)
        classes = tuple(dict.fromkeys(self.accelerators.get(worker_type, "cpu") for worker_type in self._variants[key].costs))
        return msgspec.structs.replace(spec, accelerators=classes or ACCELERATORS)

    def _costs(self, fields: Fields, key: str, variant: str) -> None:
        """`key` of these fields: the costs of a variant by worker type."""
        by_type = fields.mapping(key, f"`costs` of {variant}", None)
        for worker_type in [] if by_type is None else by_type.keys():
            assert by_type is not None
            inner = by_type.mapping(worker_type, f"the cost of {variant} on {worker_type}", COST_KEYS)
            cost = None if inner is None else read_cost(inner)
            if cost is not None:
                self._give(variant, worker_type, cost)

    def _give(self, variant: str, worker_type: str, cost: Cost) -> None:
        known = self._variants[variant]
        self._variants[variant] = msgspec.structs.replace(known, costs={**known.costs, worker_type: cost})

    def _known(self, fields: Fields, variant: str) -> bool:
        if variant not in self._variants:
            fields.problem(variant, f"no variant {variant!r} among the models{did_you_mean(variant, self._variants)}")
        return variant in self._variants

    def _files(self, fields: Fields) -> None:
        stated = fields.texts("files") or []
        if not stated:
            return
        folder = fields.source.path.parent
        try:
            loaded = load_catalog_files([folder / name for name, _ in stated], self.catalog)
        except CatalogError as error:
            for line in str(error).splitlines():
                fields.problem("files", line)
            return
        for task in loaded.tasks:
            self.catalog.tasks[task.name] = task
            for spec in task.variants:
                key = variant_key(task.name, spec.name)
                known = self._variants.get(key)
                costs = {} if known is None else known.costs
                self._variants[key] = Variant(key=key, task=task.name, accuracy=spec.accuracy, batch_size_max=spec.batch_size_max, costs=costs)
        self.catalog.endpoints |= {endpoint.name: endpoint for endpoint in loaded.endpoints}

    def _profiles(self, fields: Fields) -> None:
        for name, line in fields.texts("profiles") or []:
            path = fields.source.path.parent / name
            for profile in _read_profiles(path, lambda message, line=line: fields.source.add(line, message)):
                told = contradiction({profile.threads: profile.batches})
                if told is not None:
                    fields.source.add(line, f"{path}: {profile.variant}: {told}")
                elif profile.variant in self._variants and profile.batches:
                    self._profile(profile)
            self.provenance.append(f"profiles of {path.name}")

    def _profile(self, profile: Profile) -> None:
        known = self._variants[profile.variant].costs.get(profile.accelerator)
        latency = {} if known is None else known.latency
        cost = Cost(latency={**latency, profile.threads: profile.batches}, load_ms=profile.load_ms, memory_bytes=profile.memory_bytes)
        self._give(profile.variant, profile.accelerator, cost)

    def _endpoints(self, fields: Fields) -> None:
        inner = fields.mapping("endpoints", "`endpoints`", None)
        for name in [] if inner is None else inner.keys():
            assert inner is not None
            task = inner.text(name)
            if not is_name(name, self._limits):
                inner.problem(name, f"{name[:150]!r} is not a name: letters, digits, `.`, `_`, `-`, a letter or digit first")
            elif task is not None and task not in self.catalog.tasks:
                inner.problem(name, f"no task {task!r} among the models{did_you_mean(task, self.catalog.tasks)}")
            elif task is not None:
                self.catalog.endpoints[name] = EndpointSpec(name=name, task=task)

    def _classes(self, fields: Fields) -> None:
        inner = fields.mapping("accelerators", "`accelerators`", None)
        for worker_type in [] if inner is None else inner.keys():
            assert inner is not None
            accelerator = inner.text(worker_type)
            if accelerator is not None and accelerator not in ACCELERATORS:
                inner.problem(worker_type, f"unknown accelerator {accelerator!r}{did_you_mean(accelerator, ACCELERATORS)}")
            elif accelerator is not None:
                self.accelerators[worker_type] = accelerator


def tasks_without_costs(variants: Iterable[Variant], worker_types: set[str]) -> dict[str, list[str]]:
    """Task -> its variants, for tasks of which no variant runs on any of these types."""
    found: dict[str, list[str]] = {}
    able: set[str] = set()
    for variant in variants:
        found.setdefault(variant.task, []).append(variant.key)
        if worker_types & set(variant.costs):
            able.add(variant.task)
    return {task: keys for task, keys in found.items() if task not in able}


def _read_profiles(path: Path, problem: Callable[[str], None]) -> list[Profile]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Profiles).profiles
    except OSError as error:
        problem(f"{path} cannot be read: {error.strerror}")
    except msgspec.DecodeError as error:
        problem(f"{path} is not what `headrace profile --output` writes: {error}")
    return []
