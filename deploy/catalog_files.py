"""Catalog files: YAML documents of `kind: task` and `kind: endpoint`, checked for themselves and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from deploy.catalog_checks import CatalogChecks, StatedEndpoint, StatedTask, Statements
from deploy.catalog_graphs import GRAPH_KEYS, read_graph
from deploy.catalog_taps import read_taps
from deploy.catalog_tasks import TASK_KEYS, TaskReader, is_name, read_name
from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields, FieldsExhausted, Problems, Source, as_fields, read_documents
from schemas.catalog import AgreementSpec, Catalog, Defaults, EndpointSpec, Quota, TaskSpec
from schemas.learned import DECLARED, POLICIES, AccuracyPolicy
from schemas.limits import Limits

KINDS = ("task", "endpoint")
ENDPOINT_KEYS = ("kind", "name", "task", "graph", "defaults", "quotas", "accuracy_policy", "agreement", "taps")
AGREEMENT_KEYS = ("sample",)
DEFAULTS_KEYS = ("min_accuracy", "timeout_ms", "priority")
QUOTA_KEYS = ("rate_rps", "burst")
ANY_TENANT = "*"
RATE_RPS_MAX = 1e9


class CatalogFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say: specs in the order of the files, and where each model file (by SHA-256) lies."""

    tasks: tuple[TaskSpec, ...] = ()
    endpoints: tuple[EndpointSpec, ...] = ()
    models: dict[str, Path] = {}


def load_catalog_files(paths: Sequence[Path], present: Catalog | None = None, limits: Limits | None = None) -> CatalogFiles:
    """Read, check and cross-check YAML files; model files are hashed and compared.

    `present` is the catalog as it stands: endpoints may name its tasks and call its endpoints. Where it is None (not known yet) what refers
    to something outside of the files is not checked, and graphs may lack the inputs that are found by name. The revisions of graphs are 0.
    Raises CatalogError with every problem, one a line: `file:line: what`.
    """
    loader = _Loader(limits or Limits())
    for path in paths:
        loader.read(path)
    endpoints = CatalogChecks(loader.stated, present).endpoints()
    loader.problems.raise_if_any()
    return CatalogFiles(
        tasks=tuple(stated.spec for stated in loader.stated.tasks.values()),
        endpoints=endpoints,
        models=loader.tasks.models,
    )


class _Loader:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.problems = Problems()
        self.tasks = TaskReader(limits)
        self.stated = Statements()

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
        name, variants = self.tasks.read(fields)
        if name is None:
            return
        if name in self.stated.tasks or name in self.stated.incomplete_tasks:
            fields.problem("name", f"task {name!r} is stated twice")
        if len(self.problems.found) > before:
            self.stated.incomplete_tasks.add(name)
        else:
            self.stated.tasks[name] = StatedTask(TaskSpec(name=name, variants=variants), fields)

    def _endpoint(self, fields: Fields) -> None:
        before = len(self.problems.found)
        name = read_name(fields, "name", self.limits)
        task, graph = None, None
        if "graph" not in fields:
            task = self._task_name(fields)
        elif "task" in fields:
            fields.problem("graph", "an endpoint has either `task` or `graph`")
        else:
            inner = fields.mapping("graph", "`graph`", GRAPH_KEYS)
            graph = None if inner is None else read_graph(inner, self.limits)
        defaults = self._defaults(fields.mapping("defaults", "`defaults`", DEFAULTS_KEYS))
        quotas = self._quotas(fields.mapping("quotas", "`quotas`", None))
        policy = self._accuracy_policy(fields)
        agreement = self._agreement(fields)
        taps = read_taps(fields)
        if name is None:
            return
        if name in self.stated.endpoints or name in self.stated.incomplete_endpoints:
            fields.problem("name", f"endpoint {name!r} is stated twice")
        if len(self.problems.found) > before or (task is None and graph is None):
            self.stated.incomplete_endpoints.add(name)
        else:
            spec = EndpointSpec(name=name, task=task or "", defaults=defaults, quotas=quotas, accuracy_policy=policy, taps=taps, agreement=agreement)
            self.stated.endpoints[name] = StatedEndpoint(spec, fields, graph)

    def _task_name(self, fields: Fields) -> str | None:
        if "task" in fields:
            return read_name(fields, "task", self.limits)
        fields.source.add(fields.line, f"{fields.what} needs `task`, or `graph` for several stages")
        return None

    def _accuracy_policy(self, fields: Fields) -> AccuracyPolicy:
        stated = fields.text("accuracy_policy")
        found: AccuracyPolicy | None = next((policy for policy in POLICIES if policy == stated), None)
        if stated is not None and found is None:
            fields.problem("accuracy_policy", f"unknown accuracy_policy {stated!r}{did_you_mean(stated, POLICIES)}")
        elif found is not None and found != DECLARED and "graph" in fields:
            fields.problem(
                "accuracy_policy",
                "`accuracy_policy` is for endpoints of a `task`: which stages of a graph run depends on the input, so labels of its answers say "
                "nothing of its variants; use `headrace measure`",
            )
        return DECLARED if found is None else found

    def _agreement(self, fields: Fields) -> AgreementSpec | None:
        inner = fields.mapping("agreement", "`agreement`", AGREEMENT_KEYS)
        if inner is None:
            return None
        if "graph" in fields:
            fields.problem("agreement", "`agreement` is for endpoints of a `task`: in a graph, a `shadow` says what is to be computed beside what")
        if "sample" not in inner:
            inner.missing("sample")
        sample = inner.number("sample", 0.0, 1.0)
        return None if sample is None else AgreementSpec(sample=sample)

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
            if tenant != ANY_TENANT and not is_name(tenant, self.limits):
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
