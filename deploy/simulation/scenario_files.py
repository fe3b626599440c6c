"""Scenario files: one YAML document becomes a Scenario, or every problem with it is told with file, line and near miss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from deploy.graph_resolution import tasks_of
from deploy.simulation.control import CONTROL_KEYS, FAULT_KEYS, read_control, read_fault
from deploy.simulation.loads import SECONDS_MAX, CheckTrace, read_loads, trace_file
from deploy.simulation.models import MODELS_KEYS, Families, ModelReader, tasks_without_costs
from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields, FieldsExhausted, Problems, as_fields, line_of, read_documents
from deploy.yaml_documents_changes import changed
from scaler.simulator.scenario import Fault, Hop, Scenario, WorkerGroup
from schemas.catalog import Catalog
from schemas.errors import HeadraceError
from schemas.names import ACCELERATORS

SCENARIO_KEYS = (
    "name",
    "description",
    "provenance",
    "models",
    "workers",
    "loads",
    "duration_s",
    "warm_up_s",
    "window_s",
    "control",
    "hop",
    "noise",
    "faults",
    "shards",
    "dispatchers",
)
WORKER_KEYS = ("type", "accelerator", "count", "memory_mb", "threads")
HOP_KEYS = ("p50_ms", "p99_ms")
WORKERS_MAX, SHARDS_MAX, DISPATCHERS_MAX, FAULTS_MAX = 10_000, 1_024, 64, 10_000
BYTES_PER_MB = 1 << 20


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What names in a scenario may stand for; asked for where the file is read, so that reading it needs nothing else."""

    families: Families
    check_trace: CheckTrace
    optimizers: tuple[str, ...]
    forecasts: tuple[str, ...]


def load_scenario(path: Path, known: Known, changes: Mapping[str, str] | None = None) -> Scenario:
    """Read and check a scenario; `changes` are values (as YAML) by path that hold instead of what the file says.

    Raises CatalogError with every problem, one a line: `file:line: what`.
    """
    problems = Problems()
    documents = read_documents(path, problems)
    if not documents and not problems.found:
        problems.add(str(path), 1, "no document in the file: a scenario needs `models`, `workers` and `loads`")
    elif len(documents) > 1:
        source, node = documents[1]
        source.add(line_of(node), "a second document: a file has one scenario")
    problems.raise_if_any()
    source, root = documents[0]
    for where, value in (changes or {}).items():
        changed(root, where, value)
    scenario: Scenario | None = None
    with suppress(FieldsExhausted):
        fields = as_fields(source, root, "a scenario", SCENARIO_KEYS)
        if fields is not None:
            scenario = _Reader(known).read(fields)
    problems.raise_if_any()
    assert scenario is not None
    return scenario


class _Reader:
    def __init__(self, known: Known) -> None:
        self._known = known
        self._models = ModelReader(known.families)
        self._traces: list[str] = []
        """Where they come from."""

    def read(self, fields: Fields) -> Scenario:
        for key in ("models", "workers", "loads"):
            if key not in fields:
                fields.missing(key)
        models = fields.mapping("models", "`models`", MODELS_KEYS)
        if models is not None:
            self._models.read(models)
        workers = self._workers(fields)
        loads_fields = fields.mapping("loads", "`loads`", None)
        loads = () if loads_fields is None else read_loads(loads_fields, self._models)
        if loads_fields is not None:
            self._check_traces(loads_fields)
            if not loads_fields.keys():
                fields.problem("loads", "`loads` names no endpoint: nothing would be asked for")
        if models is not None and workers:
            self._check_fit(fields, workers, {load.endpoint for load in loads})
        inner = fields.mapping("control", "`control`", CONTROL_KEYS)
        stated: dict[str, Any] = {
            "duration_s": fields.number("duration_s", 0.001, SECONDS_MAX),
            "warm_up_s": fields.number("warm_up_s", 0.0, SECONDS_MAX),
            "window_s": fields.number("window_s", 0.001, SECONDS_MAX),
            "noise": fields.number("noise", 0.0, 2.0),
            "shards": fields.integer("shards", 1, SHARDS_MAX),
            "dispatchers": fields.integer("dispatchers", 1, DISPATCHERS_MAX),
            "hop": self._hop(fields.mapping("hop", "`hop`", HOP_KEYS)),
            "control": None if inner is None else read_control(inner, self._known.optimizers, self._known.forecasts),
        }
        scenario = Scenario(
            name=fields.text("name") or fields.source.path.stem,
            description=fields.text("description") or "",
            provenance="; ".join(dict.fromkeys(filter(None, [fields.text("provenance"), *self._models.provenance, *self._traces]))),
            catalog=used_catalog(self._models.catalog, [load.endpoint for load in loads]),
            variants=self._models.variants,
            workers=workers,
            loads=loads,
            faults=self._faults(fields),
            **{key: value for key, value in stated.items() if value is not None},
        )
        if scenario.warm_up_s >= scenario.duration_s:
            fields.problem("warm_up_s", f"`warm_up_s` is {scenario.warm_up_s:g} of {scenario.duration_s:g} s: nothing would be counted")
        if scenario.dispatchers > scenario.shards:
            fields.problem("dispatchers", f"{scenario.dispatchers} dispatchers for {scenario.shards} shards: each owns at least one shard")
        return scenario

    def _workers(self, fields: Fields) -> tuple[WorkerGroup, ...]:
        found: list[WorkerGroup] = []
        for node in fields.items("workers") or []:
            inner = as_fields(fields.source, node, "a group of workers", WORKER_KEYS)
            group = None if inner is None else self._group(inner)
            if group is not None and any(other.type == group.type for other in found):
                fields.source.add(line_of(node), f"worker type {group.type!r} stands twice: workers of one type are alike")
            elif group is not None:
                found.append(group)
        total = sum(group.count for group in found)
        if "workers" in fields and not total:
            fields.problem("workers", "there are no workers: nothing could be served")
        elif total > WORKERS_MAX:
            fields.problem("workers", f"{total} workers, the limit is {WORKERS_MAX}")
        return tuple(found)

    def _group(self, fields: Fields) -> WorkerGroup | None:
        worker_type, stated = fields.text("type"), fields.text("accelerator")
        if "type" not in fields:
            fields.missing("type")
        if stated is not None and stated not in ACCELERATORS:
            fields.problem("accelerator", f"unknown accelerator {stated!r}{did_you_mean(stated, ACCELERATORS)}")
        count, threads = fields.integer("count", 0, WORKERS_MAX), fields.integer("threads", 1, 1_024)
        memory_mb = fields.number("memory_mb", 0.0, 1e7)
        if worker_type is None:
            return None
        accelerator = stated or self._models.accelerators.get(worker_type, "cpu")
        return WorkerGroup(
            type=worker_type,
            accelerator=accelerator,
            count=1 if count is None else count,
            memory_bytes=round((memory_mb or 0.0) * BYTES_PER_MB),
            threads=threads or 1,
        )

    def _check_fit(self, fields: Fields, workers: Sequence[WorkerGroup], endpoints: set[str]) -> None:
        """Every type can run something, and every task that is asked for can run somewhere."""
        types = {group.type for group in workers if group.count}
        costed = {name for variant in self._models.variants for name in variant.costs}
        for name in sorted(types - costed):
            fields.problem("workers", f"no variant has a cost on workers of type {name!r}: they could do nothing{did_you_mean(name, costed)}")
        catalog = self._models.catalog
        asked = {task for name in endpoints if name in catalog.endpoints for task in tasks_of_endpoint(catalog, name)}
        for task, variants in tasks_without_costs(self._models.variants, types).items() if types & costed else ():
            if task in asked:
                some = ", ".join(variants[:4])
                fields.problem("models", f"task {task!r} can run nowhere: none of its variants ({some}) has a cost on {', '.join(sorted(types))}")

    def _check_traces(self, fields: Fields) -> None:
        for name in fields.keys():  # noqa: SIM118 - not a mapping
            inner = fields.mapping(name, f"load {name!r}", None)
            if inner is None or "trace" not in inner:
                continue
            try:
                told = self._known.check_trace(trace_file(inner), inner.text("column") or "")
            except HeadraceError as error:
                inner.problem("trace", str(error))
            else:
                self._traces.append(told)

    def _hop(self, fields: Fields | None) -> Hop | None:
        if fields is None:
            return None
        p50_ms, p99_ms = fields.number("p50_ms", 0.0, 60_000.0), fields.number("p99_ms", 0.0, 60_000.0)
        hop = Hop(p50_ms=Hop().p50_ms if p50_ms is None else p50_ms, p99_ms=max(p50_ms or 0.0, Hop().p99_ms) if p99_ms is None else p99_ms)
        if hop.p99_ms < hop.p50_ms:
            fields.problem("p99_ms", f"`p99_ms` is {hop.p99_ms:g}, below `p50_ms`, {hop.p50_ms:g}")
        return hop

    def _faults(self, fields: Fields) -> tuple[Fault, ...]:
        nodes = fields.items("faults") or []
        if len(nodes) > FAULTS_MAX:
            fields.problem("faults", f"{len(nodes)} faults, the limit is {FAULTS_MAX}")
        found: list[Fault] = []
        for node in nodes[:FAULTS_MAX]:
            inner = as_fields(fields.source, node, "a fault", FAULT_KEYS)
            fault = None if inner is None else read_fault(inner)
            if fault is not None:
                found.append(fault)
        return tuple(found)


def tasks_of_endpoint(catalog: Catalog, name: str) -> set[str]:
    """The tasks that an endpoint's stages compute."""
    spec = catalog.endpoints[name]
    return {spec.task} if spec.graph is None else set(tasks_of(spec.graph.nodes))


def used_catalog(catalog: Catalog, endpoints: Sequence[str]) -> Catalog:
    """The catalog with the endpoints that are asked for, and all tasks: an endpoint that nobody calls would still be planned for."""
    return Catalog(tasks=catalog.tasks, endpoints={name: spec for name, spec in catalog.endpoints.items() if name in endpoints})
