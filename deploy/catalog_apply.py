"""Applies catalog files: checks them against the catalog as it stands, copies the models, makes stage topics, writes what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from broker.log import Log, Message
from deploy.catalog_checks import stage_topics
from deploy.catalog_files import CatalogFiles, load_catalog_files
from deploy.catalog_tasks import COMBINE
from deploy.graph_resolution import has_ensemble
from deploy.snapshots import CLIENT_ID, read_catalog
from graphs.second_opinion import AGREEMENT
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, catalog_key, encode_catalog
from schemas.graph import CanaryNode, ForEachNode, Node
from schemas.names import SHARDS, Names, TopicSpec
from schemas.tap import TAP_RETENTION_HOURS
from workers.models import ModelRepository

Spec = TaskSpec | EndpointSpec


class Change(msgspec.Struct, frozen=True):
    """What `apply` did with one document; `change` is created, changed or unchanged."""

    kind: str
    name: str
    change: str
    detail: str


async def apply_files(log: Log, names: Names, files: Sequence[Path], models: Path, *, replication: int = 1) -> list[Change]:
    """Verify, copy the models, make sure of the stage topics, write tasks before endpoints; returns once the log has everything."""
    present = await read_catalog(log, names)
    stated = await asyncio.to_thread(load_catalog_files, files, present)
    await asyncio.to_thread(_copy_models, stated, models)
    endpoints = [following(endpoint, present.endpoints.get(endpoint.name), present.retired.get(endpoint.name, 0)) for endpoint in stated.endpoints]
    built_in = [COMBINE] if any(endpoint.graph is not None and has_ensemble(endpoint.graph.nodes) for endpoint in endpoints) else []
    specs: list[Spec] = [*built_in, *stated.tasks, *endpoints]
    tasks = present.tasks | {task.name: task for task in (COMBINE, *stated.tasks)}
    await log.create_topics(await _stage_topics(log, names, endpoints, tasks, replication))
    changes = [_change(spec, present) for spec in specs]
    await write_catalog(
        log, names, [(catalog_key(spec), encode_catalog(spec), ()) for spec, c in zip(specs, changes, strict=True) if c.change != "unchanged"]
    )
    await _keep_taps(log, names, present.endpoints | {endpoint.name: endpoint for endpoint in endpoints}, present)
    return changes


async def _keep_taps(log: Log, names: Names, endpoints: Mapping[str, EndpointSpec], before: Catalog) -> None:
    """Keep tapped events as long as the endpoint that wants them longest says; where none says anything, the topics stay as they are."""
    hours = [endpoint.taps.retention_hours for endpoint in endpoints.values() if endpoint.taps is not None]
    stated = [each for each in hours if each is not None]
    once = any(endpoint.taps is not None and endpoint.taps.retention_hours is not None for endpoint in before.endpoints.values())
    if stated or once:
        retention = {"retention.ms": str(max(stated, default=TAP_RETENTION_HOURS) * 3_600_000)}
        await log.configure_topics({names.tap_requests: retention, names.tap_responses: retention})


async def _stage_topics(
    log: Log, names: Names, endpoints: Sequence[EndpointSpec], tasks: Mapping[str, TaskSpec], replication: int
) -> list[TopicSpec]:
    graphs = {endpoint.name: endpoint.graph for endpoint in endpoints if endpoint.graph is not None}
    wanted = [(endpoint, topic) for endpoint, graph in graphs.items() for topic in stage_topics(graph, tasks)]
    wanted += [(endpoint.name, AGREEMENT) for endpoint in endpoints if endpoint.agreement is not None]
    if not wanted:
        return []
    partitions = await log.partitions(names.requests) or SHARDS
    return [names.stage_topic(endpoint, topic, partitions=partitions, replication=replication) for endpoint, topic in wanted]


def following(endpoint: EndpointSpec, present: EndpointSpec | None, retired: int = 0) -> EndpointSpec:
    """The endpoint as it follows on the one that stands: its graph is of the next revision where it changed, and a canary goes on where it is.

    `retired`: the last revision of an endpoint of this name that was deleted; requests may still run on it.
    """
    if present is None:
        return msgspec.structs.replace(endpoint, revision=retired + 1 if endpoint.graph else retired)
    graph = endpoint.graph
    if graph is not None and present.graph is not None:
        graph = msgspec.structs.replace(graph, nodes=_with_canaries(graph.nodes, present.graph.nodes))
    return msgspec.structs.replace(endpoint, graph=graph, revision=present.revision + (graph != present.graph))


def _with_canaries(nodes: Mapping[str, Node], present: Mapping[str, Node]) -> dict[str, Node]:
    """A canary's percentage is no part of what files say: it stays while the canary, and what it chooses between, are the same."""
    found = dict(nodes)
    for name, node in nodes.items():
        old = present.get(name)
        if isinstance(node, CanaryNode) and isinstance(old, CanaryNode):
            same = msgspec.structs.replace(old, percent=node.percent) == node
            if same and all(nodes.get(branch) == present.get(branch) for branch in (node.stable, node.candidate)):
                found[name] = old
        elif isinstance(node, ForEachNode) and isinstance(old, ForEachNode):
            found[name] = msgspec.structs.replace(node, nodes=_with_canaries(node.nodes, old.nodes))
    return found


async def write_catalog(log: Log, names: Names, messages: Sequence[Message]) -> None:
    """Write to {p}.catalog, in order, and wait for Kafka to have it. Raises LogUnavailable."""
    if not messages:
        return
    writer = log.writer(CLIENT_ID)
    await writer.start()
    try:
        await writer.write(names.catalog, 0, messages)
    finally:
        await writer.close()


def _copy_models(stated: CatalogFiles, models: Path) -> None:
    repository = ModelRepository(models)
    for sha256, path in stated.models.items():
        repository.add(path, sha256)


def _change(spec: Spec, present: Catalog) -> Change:
    if isinstance(spec, TaskSpec):
        kind, old = "task", present.tasks.get(spec.name)
        detail = f"{len(spec.variants)} variants, accuracy {min(v.accuracy for v in spec.variants):g} to {max(v.accuracy for v in spec.variants):g}"
    else:
        kind, old = "endpoint", present.endpoints.get(spec.name)
        what = f"task {spec.task}" if spec.graph is None else f"graph of {len(spec.graph.nodes)} nodes, revision {spec.revision}"
        detail = f"{what}, accuracy {spec.defaults.min_accuracy:g} within {spec.defaults.timeout_ms} ms by default"
    change = "created" if old is None else "unchanged" if encode_catalog(old) == encode_catalog(spec) else "changed"
    return Change(kind, spec.name, change, detail)
